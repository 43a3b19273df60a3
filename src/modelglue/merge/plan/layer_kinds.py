"""Whether `config.json` says of every layer in its new place what kind it is.

Families tell the kinds of their layers in ways that nobody can list. But layers of another kind
have other tensors, so a kind that the output's configuration does not tell shows in their names.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from modelglue.merge.plan.layer_counts import EVERY, FIRST, LAST, NUMBERS, Layers

Config = Mapping[str, Any]
Kind = frozenset[str]
"""What comes after the layer's number in the names of its tensors."""


def untold(
    config: Config,
    layers: Layers,
    kinds: Sequence[Kind],
    template: Config,
    own: Sequence[Kind],
    key: str,
) -> int | None:
    """The first layer of the output of which nobody can tell its kind; None if all can be told.

    Args:
        config: of the output.
        layers: (configuration of its model, its number there) of every layer of the output.
        kinds: of every layer of the output.
        template: the configuration that the output's starts from.
        own: the kinds of the template's layers.
        key: counts the layers in a configuration.
    """
    known: dict[Hashable, set[Kind]] = {}
    own = own[: int(template.get(key) or len(own))]  # what follows is none of the stack
    its = [(template, layer) for layer in range(len(own))]
    for (origin, layer), kind in zip([*layers, *its], [*kinds, *own], strict=True):
        known.setdefault(_said(origin, layer, key), set()).add(kind)
    for number, kind in enumerate(kinds):
        found = known.get(_said(config, number, key), {kind})
        if found != {kind} and kind != _at(own, number):
            return number
    return None


def _at(own: Sequence[Kind], number: int) -> Kind | None:
    """What a layer is by its place: one after the last is like it, if all but the first are."""
    if number < len(own):
        return own[number]
    return own[-1] if own and set(own[len(own) // 2 :]) == {own[-1]} else None


def _said(config: Config, layer: int, key: str) -> Hashable:
    """All that a configuration says of one layer, in the ways that are known."""
    depth = config.get(key)
    depth = depth if type(depth) is int else 0
    said: list[Hashable] = []
    for name, value in sorted(config.items()):
        if isinstance(value, list) and name in NUMBERS:
            said.append((name, layer in value))
        elif isinstance(value, list) and len(value) == depth and layer < depth:
            said.append((name, repr(value[layer])))
        elif type(value) is not int or value < 1:
            continue
        elif name in FIRST:
            said.append((name, layer < value))
        elif name in LAST:
            said.append((name, layer >= depth - value))
        elif name in EVERY:
            said.append((name, value, layer % value))
    return tuple(said)
