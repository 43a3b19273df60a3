"""Vocabularies, read from a model folder without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelglue.checkpoint.files import parse_json_object, read_json_object, read_small
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.sentencepiece import pieces
from modelglue.errors import CheckpointNotFound, CorruptCheckpoint

# In the order of preference; the first that a folder has is read.
_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
UNNUMBERED = ("spiece.model", "sentencepiece.bpe.model")
"""Files whose pieces some families number otherwise: good for no more than to be compared."""
# Where the tokens added to one of them are, but for tokenizer.json, which has its own.
_BESIDE = ("added_tokens.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer knows.

    Attributes:
        ids: token → id, added tokens included.
        added: the added tokens, as tokenizer.json lists them (`id`, `content`, `special`, …), by
            their content.
        ordinary: the number of tokens in the model's own table.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    ordinary: int


def vocabulary(model: Checkpoint | str | Path) -> Mapping[str, int]:
    """Token → id, with added tokens, from whichever file a model has of those in `_FILES`.

    Args:
        model: a checkpoint or its folder.

    Raises:
        CheckpointNotFound: there is no such file.
        CorruptCheckpoint: it is not what its name says.
    """
    return tokens_of(model).ids


def tokens_of(model: Checkpoint | str | Path) -> Tokens:
    """The vocabulary, and which tokens of it were added.

    Raises:
        CheckpointNotFound: there is no such file.
        CorruptCheckpoint: it is not what its name says.
    """
    path = tokenizer_file(model)
    if path is None:
        known = f"{', '.join(_FILES[:-1])} or {_FILES[-1]}"
        raise CheckpointNotFound(f"{folders_of(model)[0]}: there is no {known}.")
    read = [path] if path.name == "tokenizer.json" else [path, *map(path.with_name, _BESIDE)]
    stamps = (file.stat() if file.is_file() else None for file in read)
    return _parsed(path, tuple((s.st_mtime_ns, s.st_size) if s else None for s in stamps))


def tokenizer_file(model: Checkpoint | str | Path) -> Path | None:
    """The file that the vocabulary is read from, if there is one."""
    paths = (folder / name for folder in folders_of(model) for name in _FILES)
    return next((path for path in paths if path.is_file()), None)


def same_vocabulary(a: Checkpoint | str | Path, b: Checkpoint | str | Path) -> str | None:
    """Why the tokens of two models are not the same, in words; None if they are.

    None as well when one of them brings no vocabulary to compare.
    """
    first, second = tokenizer_file(a), tokenizer_file(b)
    if first is None or second is None:
        return None
    # Most models of a family share the file to the byte. Of the others it is not all there is.
    if first.name == second.name == "tokenizer.json" and read_small(first) == read_small(second):
        return None
    one, two = vocabulary(a), vocabulary(b)
    if one == two:
        return None
    for token, index in sorted(one.items(), key=lambda item: item[1]):
        if token in two and two[token] != index:
            return f"token {token!r} is number {index} in one and {two[token]} in the other"
    lacking, added = sorted(one.keys() - two.keys()), sorted(two.keys() - one.keys())
    example = (lacking or added)[0]
    return (
        f"{len(one)} tokens against {len(two)}; "
        f"{len(lacking) + len(added)} are in one alone, such as {example!r}"
    )


def folders_of(model: Checkpoint | str | Path) -> tuple[Path, ...]:
    """Where a model's tokenizer files are looked for, in this order."""
    return model.folders if isinstance(model, Checkpoint) else (Path(model),)


@lru_cache(maxsize=32)
def _parsed(path: Path, _stamps: tuple[tuple[int, int] | None, ...]) -> Tokens:
    if path.name == "tokenizer.json":
        table, added = _from_tokenizer_json(read_json_object(path), path)
    else:
        table, added = _table(path), _added_beside(path)
    ids = table | {token: entry["id"] for token, entry in added.items()}
    if not all(type(index) is int for index in ids.values()):
        raise CorruptCheckpoint(f"{path}: a token's number is no integer. Fetch the file again.")
    return Tokens(MappingProxyType(ids), MappingProxyType(added), len(table))


def _table(path: Path) -> dict[str, Any]:
    if path.name == "vocab.json":
        return read_json_object(path)
    try:
        if path.name == "vocab.txt":
            listed = read_small(path).decode("utf-8").splitlines()
        else:
            listed = pieces(read_small(path))
    except ValueError as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error}. Fetch it again.") from None
    return {token: index for index, token in enumerate(listed)}


def _added_beside(path: Path) -> dict[str, dict[str, Any]]:
    """The added tokens where there is no tokenizer.json; what the settings say counts."""
    listed, settings = (
        parse_json_object(read_small(file), file, what="the file") if file.is_file() else {}
        for file in map(path.with_name, _BESIDE)
    )
    added = {token: {"id": index, "content": token} for token, index in listed.items()}
    try:
        decoder = settings.get("added_tokens_decoder") or {}
        entries = [{**entry, "id": int(number)} for number, entry in decoder.items()]
        return added | {entry["content"]: entry for entry in entries}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CorruptCheckpoint(
            f"{path.with_name(_BESIDE[1])}: added_tokens_decoder is no mapping of numbers to "
            "tokens. Fetch the file again."
        ) from None


def _from_tokenizer_json(
    content: dict[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The model's own table, and the added tokens by their content."""
    try:
        listed = content["model"]["vocab"]
        if isinstance(listed, dict):
            table = dict(listed)
        else:  # Unigram: [token, score] in the order of their numbers
            table = {token: index for index, (token, _) in enumerate(listed)}
        entries = sorted(content.get("added_tokens") or [], key=lambda entry: entry["id"])
        added = {entry["content"]: dict(entry) for entry in entries}
    except (KeyError, TypeError, ValueError):
        raise CorruptCheckpoint(
            f"{path}: no vocabulary is in it where one should be. Fetch the file again."
        ) from None
    return table, added
