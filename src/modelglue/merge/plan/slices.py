"""Which tensor of each model every output tensor is made of, told from names alone.

A tensor belongs to a layer if its name has the layer's number in it (`model.layers.3.…`); experts
and other parts of a layer follow it wherever it goes. No list of architectures is needed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modelglue.checkpoint.naming import is_buffer, split_layer
from modelglue.errors import InputError, NotMergeable

# What comes before the first layer; all else that is in no layer comes after the last.
_BEFORE = re.compile(r"emb|wte|wpe|shared|relative_pe|patch|layernorm_pre|ln_pre|conv1|project_in")


@dataclass(frozen=True, slots=True)
class Row:
    """An output tensor and what it is made of, by name.

    Attributes:
        names: of each model of the group.
        base: of the group's base, if it has one.
        t: how far along the layers it is, from 0 to 1; 0 outside of them.
        group: which group of models, counted within the part.
    """

    name: str
    names: tuple[str, ...]
    base: str | None
    t: float
    group: int


class Layers:
    """A model's tensors, or some of them, by layer.

    Args:
        names: of the tensors, in the model's order.
        depth: of the stack of layers that a slice means, if a configuration tells it.
    """

    def __init__(self, names: Iterable[str], depth: int | None = None) -> None:
        self.names = tuple(names)
        self._depth = depth

    @cached_property
    def stacks(self) -> Mapping[str, Mapping[int, tuple[str, ...]]]:
        """What comes before a layer's number → the number → what comes after it."""
        found: dict[str, dict[int, list[str]]] = {}
        for name in self.names:
            if (split := split_layer(name)) is not None:
                before, layer, after = split
                found.setdefault(before, {}).setdefault(layer, []).append(after)
        return {
            before: {layer: tuple(rest) for layer, rest in sorted(layers.items())}
            for before, layers in found.items()
        }

    @cached_property
    def main(self) -> str | None:
        """The stack that a slice means: the only one, or the only one of the right depth."""
        stacks = list(self.stacks)
        if len(stacks) > 1:
            stacks = [before for before in stacks if self.depth(before) == self._depth]
        return stacks[0] if len(stacks) == 1 else None

    def depth(self, before: str) -> int:
        """The number of layers of a stack."""
        return max(self.stacks.get(before, {}), default=-1) + 1

    def kind(self, before: str, layer: int) -> frozenset[str]:
        """What the tensors of a layer are called after its number, but for buffers."""
        rest = self.stacks.get(before, {}).get(layer, ())
        return frozenset(after for after in rest if not is_buffer(f"{before}{layer}{after}"))

    def t(self, name: str) -> float:
        """How far along its stack a tensor is; 0 outside of layers."""
        split = split_layer(name)
        if split is None:
            return 0.0
        return along(split[1], self.depth(split[0]))

    def outside(self, *, before: bool) -> list[str]:
        """The tensors outside of the main stack that come before it, or after it."""
        stack = self.main or ""
        return [
            name
            for name in self.names
            if not ((split := split_layer(name)) and split[0] == stack)
            and bool(split or _BEFORE.search(name)) == before
        ]


def along(layer: int, depth: int) -> float:
    """Where gradients are read for a layer: 0 the first, 1 the last; 1 as well for a single one."""
    return layer / (depth - 1) if depth > 1 else 1.0


@dataclass(frozen=True)
class Stacked:
    """Some layers of one model, as a slice takes them.

    Attributes:
        first: the first of them.
    """

    model: str
    layers: Layers
    first: int


@dataclass(frozen=True)
class Slice:
    """Layers that are merged one by one.

    Attributes:
        count: the number of layers.
    """

    models: Sequence[Stacked]
    base: Stacked | None
    count: int

    @property
    def columns(self) -> tuple[Stacked, ...]:
        """The models, then the base if there is one."""
        return (*self.models, *([self.base] if self.base else []))


def whole(template: Layers, n: int, *, base: bool, graded: bool) -> Iterator[Row]:
    """Models merged as they are: the same name everywhere.

    Args:
        template: has the output's names.
        n: the number of models.
        base: whether the group has one.
        graded: whether anybody will ask for `t`.
    """
    for name in template.names:
        t = template.t(name) if graded else 0.0
        yield Row(name, (name,) * n, name if base else None, t, 0)


def stacked(slices: Sequence[Slice], lacks: Callable[[InputError], None]) -> Iterator[Row]:
    """Slices, one after the other; what is outside of layers is from the first and last of them.

    Args:
        slices: of the output, from its first layer on.
        lacks: is told what is wrong; then there are no rows.
    """
    problems = list(_stacking_problems(slices))
    for problem in problems:
        lacks(NotMergeable(problem))
    if problems:
        return
    stack = slices[0].models[0].layers.main or ""
    yield from _outside(slices[0], 0, before=True)
    at = 0
    for index, part in enumerate(slices):
        lead = part.models[0]
        for offset in range(part.count):
            t = along(offset, part.count)
            for rest in lead.layers.stacks[stack].get(lead.first + offset, ()):
                names = [f"{stack}{column.first + offset}{rest}" for column in part.columns]
                base = names.pop() if part.base else None
                yield Row(f"{stack}{at}{rest}", tuple(names), base, t, index)
            at += 1
    yield from _outside(slices[-1], len(slices) - 1, before=False)


def _outside(part: Slice, index: int, *, before: bool) -> Iterator[Row]:
    for name in part.models[0].layers.outside(before=before):
        yield Row(name, (name,) * len(part.models), name if part.base else None, 0.0, index)


def _stacking_problems(slices: Sequence[Slice]) -> Iterator[str]:
    stack = slices[0].models[0].layers.main
    for part in slices:
        for column in part.columns:
            layers, last = column.layers, column.first + part.count
            if layers.main is None:
                found = ", ".join(f"{before}0…" for before in layers.stacks) or "none"
                yield (
                    f"slices: it is not clear which layers of {column.model} are meant; its "
                    f"tensors' names show these stacks: {found}{_as_modules(list(layers.stacks))}"
                )
            elif last > layers.depth(layers.main):
                yield (
                    f"slices: {column.model} has {layers.depth(layers.main)} layers; layer_range "
                    f"asks for [{column.first}, {last}]"
                )
            elif stack is not None and layers.main != stack:
                yield (
                    f"slices: the layers of {column.model} are named {layers.main}0…, those of "
                    f"{slices[0].models[0].model} {stack}0…; only models of one architecture can "
                    "be stacked"
                )


def _as_modules(stacks: Sequence[str]) -> str:
    """What to do about several stacks: each is a module, named as a part that the others lack."""
    parts = [stack.split(".") for stack in stacks]
    own = [
        next((part for part in mine if all(part not in p for p in parts if p is not mine)), None)
        for mine in parts
    ]
    if len(own) < 2 or None in own:
        return ""
    return ". Give each its own: modules: {" + ", ".join(f"{name}: …" for name in own) + "}"


def covered(model: Stacked, count: int, *, first: bool, last: bool) -> Iterator[str]:
    """The tensors of a slice's model that the output has to have."""
    stack = model.layers.main or ""
    for layer in range(model.first, model.first + count):
        for after in model.layers.stacks.get(stack, {}).get(layer, ()):
            yield f"{stack}{layer}{after}"
    if first:
        yield from model.layers.outside(before=True)
    if last:
        yield from model.layers.outside(before=False)


def parts_of(names: Iterable[str], modules: Sequence[str]) -> dict[str, list[str]]:
    """Which tensors each module has: those with the module's name among the parts of theirs.

    One module may have a name of its own ("default", "text_decoder") and gets the rest.

    Raises:
        NotMergeable: some tensors are in no module, or it isn't clear in which.
    """
    found: dict[str, list[str]] = {module: [] for module in modules}
    rest = []
    for name in names:
        owners = [module for module in modules if f".{module}." in f".{name}"]
        if owners:
            found[max(owners, key=len)].append(name)
        else:
            rest.append(name)
    empty = [module for module, owned in found.items() if not owned]
    if (rest and len(empty) != 1) or (not rest and empty):
        example = f"{rest[0]} is in none of them" if rest else f"no tensor is in {empty[0]}"
        raise NotMergeable(
            f"modules: {', '.join(modules)}: {example}. A module is named as a part of its "
            "tensors' names; one that is not gets all the rest."
        )
    if rest:
        found[empty[0]] = rest
    return found


def depth_of(config: Mapping[str, Any]) -> int | None:
    """The number of layers that a `config.json` tells; of its text model, if it is nested."""
    for section in (config.get("text_config"), config):
        if isinstance(section, Mapping):
            for key in DEPTHS:
                if isinstance(section.get(key), int):
                    return int(section[key])
    return None


DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
