"""Vocabularies, read from a model folder without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelglue.checkpoint.files import parse_json_object, read_json_object, read_small
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import CheckpointNotFound, CorruptCheckpoint

# In the order of preference; the first that a folder has is read.
_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")


def vocabulary(model: Checkpoint | str | Path) -> Mapping[str, int]:
    """Token → id, with added tokens, from tokenizer.json, vocab.json or vocab.txt.

    Args:
        model: a checkpoint or its folder.

    Raises:
        CheckpointNotFound: there is no such file.
        CorruptCheckpoint: it is not what its name says.
    """
    path = _file(model)
    if path is None or path.name == "tokenizer.model":
        raise CheckpointNotFound(
            f"{_folders(model)[0]}: there is no tokenizer.json, vocab.json or vocab.txt."
        )
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


def same_vocabulary(a: Checkpoint | str | Path, b: Checkpoint | str | Path) -> str | None:
    """Why the tokens of two models are not the same, in words; None if they are.

    None as well when one of them brings no vocabulary to compare.
    """
    first, second = _file(a), _file(b)
    if first is None or second is None:
        return None
    # Most models of a family share the file to the byte.
    if first.name == second.name and read_small(first) == read_small(second):
        return None
    if "tokenizer.model" in (first.name, second.name):
        return None if first.name != second.name else "their tokenizer.model files differ"
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


def _folders(model: Checkpoint | str | Path) -> tuple[Path, ...]:
    return model.folders if isinstance(model, Checkpoint) else (Path(model),)


def _file(model: Checkpoint | str | Path) -> Path | None:
    paths = (folder / name for folder in _folders(model) for name in _FILES)
    return next((path for path in paths if path.is_file()), None)


@lru_cache(maxsize=32)
def _parsed(path: Path, _mtime: int, _size: int) -> Mapping[str, int]:
    if path.name == "tokenizer.json":
        found = _from_tokenizer_json(read_json_object(path), path)
    elif path.name == "vocab.json":
        found = read_json_object(path)
        added = path.with_name("added_tokens.json")
        if added.is_file():
            found |= parse_json_object(read_small(added), added, what="the file")
    else:
        try:
            lines = read_small(path).decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise CorruptCheckpoint(f"{path} is not UTF-8. Fetch it again.") from None
        found = {token: index for index, token in enumerate(lines)}
    if not all(type(index) is int for index in found.values()):
        raise CorruptCheckpoint(f"{path}: a token's number is no integer. Fetch the file again.")
    return MappingProxyType(found)


def _from_tokenizer_json(content: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        listed = content["model"]["vocab"]
        if isinstance(listed, dict):
            found = dict(listed)
        else:  # Unigram: [token, score] in the order of their numbers
            found = {token: index for index, (token, _) in enumerate(listed)}
        found |= {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError):
        raise CorruptCheckpoint(
            f"{path}: no vocabulary is in it where one should be. Fetch the file again."
        ) from None
    return found
