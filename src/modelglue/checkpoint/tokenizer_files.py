"""The files of a tokenizer, edited as text: tokens added or left out, nothing else changed.

No tokenizer is instantiated. Tokens keep their numbers; a new one gets the number that the
`tokenizers` library gives it when it reads the file, which is the only one that will stand.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelglue.checkpoint.chat_templates import template_of, with_templates_of
from modelglue.checkpoint.companions import companions
from modelglue.checkpoint.files import read_json_object
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.tokenizer import Tokens, folders_of, tokenizer_file
from modelglue.errors import NotMergeable

# Companions that are no part of a tokenizer.
_OTHERS = (
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
# What `edited` writes anew or keeps; every other tokenizer file would contradict it.
_KEPT = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_FLAGS = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}


def added_token(token: str, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An entry of tokenizer.json's `added_tokens`, without its number.

    Args:
        token: its content.
        like: an entry whose flags it takes over; by default those of a plain added token.
    """
    given = like or {}
    return {"content": token, **{flag: given.get(flag, _FLAGS[flag]) for flag in _FLAGS}}


def next_number(tokens: Tokens, without: Collection[str] = ()) -> int:
    """The number that the `tokenizers` library gives to the next added token.

    Raises:
        NotMergeable: another token has it, because the numbers in the model's table have gaps.
    """
    highest = max((e["id"] for t, e in tokens.added.items() if t not in without), default=-1)
    number = highest + 1 if highest >= tokens.ordinary else tokens.ordinary
    beyond = [token for token, index in tokens.ids.items() if index >= number]
    if set(beyond) - set(without):
        raise NotMergeable(
            f"no token can be added to the tokenizer: its {tokens.ordinary} tokens are not "
            f"numbered in one piece ({beyond[0]!r} is {tokens.ids[beyond[0]]}). "
            "Choose another one with tokenizer: {source: …}."
        )
    return number


def tokenizer_files(model: Checkpoint | Path) -> dict[str, bytes]:
    """Tokenizer files and chat templates of a model, by name.

    Of an adapter on a base, the tokenizer is the adapter's if it brings one, else the base's, with
    all that belongs to it; and the chat templates likewise.
    """
    whole = _tokenizer_folder(model)
    found = {name: data for name, data in companions(whole).items() if name not in _OTHERS}
    brings = next((one for one in folders_of(model) if template_of(one) is not None), whole)
    return found if brings == whole else with_templates_of(found, companions(brings))


def settings_of(model: Checkpoint | Path, name: str) -> dict[str, Any]:
    """One of the JSON files beside a model; empty where there is none.

    Raises:
        CorruptCheckpoint: it is no JSON object.
    """
    whose = folders_of(model) if name in ("config.json", *_OTHERS) else (_tokenizer_folder(model),)
    path = next((folder / name for folder in whose if (folder / name).is_file()), None)
    return {} if path is None else read_json_object(path)


def other_files(model: Checkpoint | Path, *, code: bool = False) -> dict[str, bytes]:
    """What belongs beside the weights but not to the tokenizer: generation settings and the like.

    Args:
        model: whose files are wanted.
        code: also its Python files.
    """
    found: dict[str, bytes] = {}
    for folder in reversed(folders_of(model)):
        found |= companions(folder, code=code)
    return {n: data for n, data in found.items() if n in _OTHERS or n.endswith(".py")}


def edited(
    files: Mapping[str, bytes],
    *,
    add: Sequence[Mapping[str, Any]] = (),
    drop: Collection[str] = (),
) -> dict[str, bytes]:
    """A tokenizer with other added tokens.

    Args:
        files: of the tokenizer, by name; tokenizer.json is among them.
        add: entries of `added_tokens`, numbers included.
        drop: contents of added tokens to leave out.

    Returns:
        tokenizer.json, tokenizer_config.json and chat templates. Files that say the same in another
        format (tokenizer.model, merges.txt …) are left out.
    """
    result = {
        name: data
        for name, data in files.items()
        if name in _KEPT or name.startswith("additional_chat_templates")
    }
    content = json.loads(files["tokenizer.json"])
    added = {entry["content"]: entry for entry in content.get("added_tokens") or []}
    added |= {entry["content"]: dict(entry) for entry in add}
    entries = [entry for token, entry in added.items() if token not in drop]
    content["added_tokens"] = sorted(entries, key=lambda entry: int(entry["id"]))
    result["tokenizer.json"] = _json(content)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if name in result:
            settings = _without(json.loads(result[name]), drop)
            decoder = settings.get("added_tokens_decoder")
            if isinstance(decoder, dict):
                settings["added_tokens_decoder"] = _decoder(decoder, add, drop)
            result[name] = _json(settings)
    return result


def _tokenizer_folder(model: Checkpoint | Path) -> Path:
    """The first folder with a tokenizer; no file of another one goes with it."""
    path = tokenizer_file(model)
    if path is not None:
        return path.parent
    folders = folders_of(model)
    return next((one for one in folders if companions(one).keys() - set(_OTHERS)), folders[0])


def _without(settings: dict[str, Any], drop: Collection[str]) -> dict[str, Any]:
    """Settings without the special tokens that are left out."""

    def dropped(value: Any) -> bool:
        return (value.get("content") if isinstance(value, dict) else value) in drop

    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, list) and key.endswith("_special_tokens"):
            kept[key] = [entry for entry in value if not dropped(entry)]
        elif not (key.endswith("_token") and isinstance(value, str | dict) and dropped(value)):
            kept[key] = value
    return kept


def _decoder(
    decoder: dict[str, Any], add: Sequence[Mapping[str, Any]], drop: Collection[str]
) -> dict[str, Any]:
    entries = {int(n): entry for n, entry in decoder.items() if entry["content"] not in drop}
    for entry in add:
        entries[entry["id"]] = {name: value for name, value in entry.items() if name != "id"}
    return {str(number): entries[number] for number in sorted(entries)}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
