"""Merging models that are held in memory as state dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from modelglue.errors import NonFiniteTensor, NotMergeable, ShapeMismatch
from modelglue.merge.arrays import namespace
from modelglue.merge.chunk import Chunk, Rows
from modelglue.merge.memory import Asked, InMemory, prepare
from modelglue.merge.method import METHODS

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

Ask = Callable[[str, int], Asked]
"""(a tensor's name, entries of the tensors before) → its merge, laid out."""


def merge_state_dicts(
    state_dicts: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None = None,
    *,
    method: str = "linear",
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge models that are held in memory, tensor by tensor.

    Args:
        state_dicts: n of them, of the same names and shapes.
        base: the same of the base, for the methods that need it.
        method: any of `modelglue methods` that needs no statistics.
        **parameters: of the method, by name (`lambda` as `lambda_`).

    Returns:
        A new state dict in the dtypes of the first. What is no floating-point tensor is the
        first's.

    Raises:
        NotMergeable, ShapeMismatch: names or shapes differ.
        NonFiniteTensor: a result is not finite.
        UnknownName: there is no such method.
        TypeError: a parameter that the method does not have, or one that it lacks.
        ValueError: a value out of range, or too few or too many models.
    """
    formula = METHODS[method]
    if not state_dicts:
        raise ValueError("there is no state dict to merge")
    first = state_dicts[0]
    for other in [*state_dicts[1:], *([] if base is None else [base])]:
        if other.keys() != first.keys():
            odd = sorted(other.keys() ^ first.keys())[0]
            raise NotMergeable(f"{odd}: not every model has it")
    floating = [name for name, tensor in first.items() if tensor.is_floating_point()]

    def ask(name: str, offset: int = 0) -> Asked:
        try:
            return prepare(
                formula,
                [state[name] for state in state_dicts],
                None if base is None else base[name],
                parameters=parameters,
                name=name,
                offset=offset,
            )
        except ShapeMismatch as error:
            raise ShapeMismatch(f"{name}: {error}") from None

    measured, offsets = _measure(ask, floating)
    merged: dict[str, Tensor] = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            merged[name] = tensor.clone()
            continue
        asked = ask(name, offsets.get(name, 0))
        if not offsets:
            measured = formula.first_pass(asked.whole, asked.values)
        result: Tensor = asked.merge(measured)
        if not bool(result.isfinite().all()):
            bad = [i for i, state in enumerate(state_dicts) if not state[name].isfinite().all()]
            which = f"; model {bad[0]} (from 0) holds NaN or infinity there" if bad else ""
            raise NonFiniteTensor(f"{name}: the result is not finite{which}")
        merged[name] = result
    return merged


def _measure(ask: Ask, names: Sequence[str]) -> tuple[Any, Mapping[str, int]]:
    """What a method measures over all tensors at once, and how many entries lie before each.

    No offsets where it looks at each tensor by itself.
    """
    if not names:
        return None, {}
    asked = ask(names[0], 0)
    if asked.method.reach(asked.values) != "model":
        return None, {}
    together = _Together(ask, names)
    return asked.method.first_pass(together, asked.values), together.offsets


class _Together:
    """Many tensors as one whole, one of them laid out at a time; see `chunk.Whole`."""

    shape: tuple[int, ...] = ()
    statistics: Sequence[Rows] = ()

    def __init__(self, ask: Ask, names: Sequence[str]) -> None:
        self._ask = ask
        self._places: list[tuple[str, int]] = []
        self.offsets: dict[str, int] = {}
        self.n = self.numel = 0
        self.has_base = False
        for name in names:
            whole = ask(name, 0).whole
            self.offsets[name] = self.numel
            self.n, self.has_base = whole.n, whole.has_base
            self.numel += whole.numel
            self._places += [(name, index) for index in range(len(whole.ranges))]

    def map(self, function: Callable[[Chunk], T]) -> list[T]:
        """Apply `function` to every chunk of every tensor; the results in their order."""
        return [found for name in self.offsets for found in self._whole(name).map(function)]

    def walk(self) -> Iterator[Chunk]:
        """Every chunk of every tensor, in order."""
        return (chunk for name in self.offsets for chunk in self._whole(name).walk())

    def chunk(self, index: int) -> Chunk:
        """One chunk again."""
        name, number = self._places[index]
        return self._whole(name).chunk(number)

    def sample(self, count: int) -> Chunk:
        """A share of every tensor's entries."""
        parts = []
        for whole in map(self._whole, self.offsets):
            parts.append(whole.sample(max(1, count * whole.numel // max(self.numel, 1))))
        xp = namespace(parts[0].models)
        bases = [part.fp32_base for part in parts if part.base is not None]
        models = xp.concatenate([part.fp32 for part in parts], 1)
        return Chunk(models, xp.concatenate(bases) if bases else None, start=0, width=1)

    def _whole(self, name: str) -> InMemory:
        return self._ask(name, self.offsets[name]).whole
