"""Which keys of a `config.json` count the layers of a stack, where a model has several.

Told from names and numbers: `decoder_layers` counts `model.decoder.layers.0…`,
`vision_config.num_hidden_layers` a stack with "vision" in its name; a key that names no part, such
as `num_layers`, counts the stack that none names. It has to hold the number of layers that there
are.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from modelglue.errors import NotMergeable
from modelglue.merge.plan.slices import DEPTHS

Path = tuple[str, ...]
"""The keys that lead to a section of a configuration; () is the configuration itself."""

_COUNTS = re.compile(r"(num_|n_)?([a-z]+_)?layers?")
_IDLE = frozenset(("num", "n", "hidden", "layer", "layers", "config", "model"))


def sections(
    config: Mapping[str, Any], path: Path = ()
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The configuration and all that are nested in it."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping) and len(path) < 2:
            yield from sections(value, (*path, key))


def counted_by(
    config: Mapping[str, Any], stack: str, depths: Mapping[str, int]
) -> dict[Path, list[str]]:
    """The keys that count a stack's layers, by section; none if the configuration has none.

    Args:
        config: of the model.
        stack: what the names of its tensors begin with.
        depths: the number of layers of every stack of the model.

    Raises:
        NotMergeable: a key counts several stacks.
    """
    if len(depths) < 2:
        return _only(config)
    named = {name: _named(config, name, depth) for name, depth in depths.items()}
    taken = {place for places in named.values() for place in places}
    left = {
        name: [place for place in _nameless(config, depths[name]) if place not in taken]
        for name, places in named.items()
        if not places
    }
    found = named[stack] or left[stack]
    for place in found:
        others = [name for name, places in left.items() if name != stack and place in places]
        if others and not named[stack]:
            raise NotMergeable(
                f"slices: {'.'.join((*place[0], place[1]))} of config.json counts the layers of "
                f"{others[0]}0… as well as those of {stack}0…; a key of their own is needed for one"
            )
    if named[stack] and "encoder" in _words(stack):
        # The key without a name is the encoder's, where it has one with its name as well.
        counted = {place for places in left.values() for place in places}
        inside = {path for path, _ in found}
        nameless = _nameless(config, depths[stack])
        found = [*found, *(p for p in nameless if p[0] in inside and p not in taken | counted)]
    by_section: dict[Path, list[str]] = {}
    for path, key in found:
        by_section.setdefault(path, []).append(key)
    return by_section


def _only(config: Mapping[str, Any]) -> dict[Path, list[str]]:
    """Those of a model of a single stack, or whose other stacks nobody numbers."""
    found = {}
    for path, section in sections(config):
        if path in ((), ("text_config",)):
            keys = [key for key in DEPTHS if type(section.get(key)) is int]
            found[path] = keys[:1]
    return {path: keys for path, keys in found.items() if keys}


def _named(config: Mapping[str, Any], stack: str, depth: int) -> list[tuple[Path, str]]:
    words = _words(stack)
    found = []
    for path, key in _counts(config, depth):
        said = _said(path, key)
        if said and said <= set(words):
            found.append((min(words.index(word) for word in said), path, key))
    # `decoder.bert.encoder.layer` is the decoder's.
    first = min((at for at, _, _ in found), default=0)
    return [(path, key) for at, path, key in found if at == first]


def _nameless(config: Mapping[str, Any], depth: int) -> list[tuple[Path, str]]:
    return [(path, key) for path, key in _counts(config, depth) if not _said((), key)]


def _counts(config: Mapping[str, Any], depth: int) -> Iterator[tuple[Path, str]]:
    for path, section in sections(config):
        for key, value in section.items():
            if type(value) is int and value == depth and _COUNTS.fullmatch(key):
                yield path, key


def _said(path: Path, key: str) -> set[str]:
    return set(_words("_".join((*path, key)))) - _IDLE


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", name.lower())
