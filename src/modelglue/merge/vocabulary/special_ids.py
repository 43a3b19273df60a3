"""Numbers of special tokens in a configuration, which follow their tokens when those move."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.tokenizer_files import settings_of

_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_KEY = re.compile(r"_token_(id|ids|index)$|^(begin_)?suppress_tokens$")


def followed(
    config: Mapping[str, Any], ids: Mapping[int, int | None], roles: Mapping[str, int]
) -> dict[str, Any]:
    """A `config.json` or `generation_config.json` with its token ids renumbered.

    Args:
        config: the settings, nested ones included.
        ids: old number → new one; None for a token that is gone. Numbers that are not in it stay.
        roles: "bos", "eos", … → the number that takes the place of a token that is gone. Without
            one the setting is left out.
    """
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result[key] = followed(value, ids, roles)
        elif not _KEY.search(key):
            result[key] = value
        elif isinstance(value, list):
            moved = [ids.get(one, one) if isinstance(one, int) else one for one in value]
            kept = [one for one in moved if one is not None]
            role = _role(key, roles)
            result[key] = kept or ([role] if role is not None else [])
        elif type(value) is int:
            moved_to = ids.get(value, value)
            found = moved_to if moved_to is not None else _role(key, roles)
            if found is not None:
                result[key] = found
        else:
            result[key] = value
    return result


def taken_over(
    config: Mapping[str, Any], ends: Mapping[str, Any], *, nested: str = "text_config"
) -> dict[str, Any]:
    """A configuration whose texts begin, end and are padded as another model's.

    Args:
        config: the settings.
        ends: of the other model, as `ends_of` says.
        nested: where the settings are looked for, too, and added if they are in neither place.
    """
    result = dict(config)
    inner = result.get(nested)
    parts = [result]
    if isinstance(inner, Mapping):
        result[nested] = dict(inner)
        parts.append(result[nested])
    for key, value in ends.items():
        for part in [part for part in parts if key in part] or parts[-1:]:
            part[key] = value
    return result


def ends_of(
    tokenizer: Checkpoint | Path, roles: Mapping[str, int], *files: str
) -> dict[str, int | list[int]]:
    """A model's `bos_token_id`, `eos_token_id` and `pad_token_id`.

    Args:
        tokenizer: the model, or a folder with no more than a tokenizer.
        roles: what its tokenizer names, for what it doesn't say itself.
        files: beside it that may say them, the first one that does counts.
    """
    found: dict[str, Any] = {}
    for name in files:
        settings = settings_of(tokenizer, name)
        if name == "config.json" and isinstance(tokenizer, Checkpoint):
            settings = dict(tokenizer.config)
        inner = settings.get("text_config")
        for part in (settings, inner if isinstance(inner, Mapping) else {}):
            for key in _ENDS:
                found[key] = part.get(key) if found.get(key) is None else found[key]
    said = {key: roles.get(_role_of(key)) if found[key] is None else found[key] for key in _ENDS}
    return {key: value for key, value in said.items() if value is not None}


def roles_of(tokenizer: Checkpoint | Path, ids: Mapping[str, int]) -> dict[str, int]:
    """The special tokens that a tokenizer names: "bos", "eos", "pad", … → number."""
    found = {}
    for key, value in settings_of(tokenizer, "tokenizer_config.json").items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str) and content in ids:
            found[key.removesuffix("_token")] = ids[content]
    return found


def _role(key: str, roles: Mapping[str, int]) -> int | None:
    return roles.get(_role_of(key))


def _role_of(key: str) -> str:
    return key.partition("_token_")[0]
