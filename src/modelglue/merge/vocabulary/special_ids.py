"""Numbers of special tokens in a configuration, which follow their tokens when those move."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.tokenizer_files import settings_of

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


def roles_of(tokenizer: Checkpoint | Path, ids: Mapping[str, int]) -> dict[str, int]:
    """The special tokens that a tokenizer names: "bos", "eos", "pad", … → number."""
    found = {}
    for key, value in settings_of(tokenizer, "tokenizer_config.json").items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str) and content in ids:
            found[key.removesuffix("_token")] = ids[content]
    return found


def _role(key: str, roles: Mapping[str, int]) -> int | None:
    return roles.get(key.partition("_token_")[0])
