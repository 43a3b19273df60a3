"""What a merge method sees: the same piece of one tensor of every model, and all such pieces."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from modelglue.merge.arrays import Array, floats

T = TypeVar("T")

CHUNK = 1 << 19
"""Entries of one model that are worked on at a time: 1 MiB of bfloat16."""


def ranges(
    numel: int, width: int, *, size: int | None = None, rows: bool = False
) -> Iterator[tuple[int, int]]:
    """Cut 0 … numel into chunks of about `size` (by default `CHUNK`) entries.

    They are whole rows of `width`; a row that is longer than `size` is cut unless `rows` is true.
    The cut does not depend on threads or devices.

    >>> list(ranges(10, 3, size=7))
    [(0, 6), (6, 10)]
    >>> list(ranges(10, 8, size=4))
    [(0, 4), (4, 8), (8, 10)]
    >>> list(ranges(16, 8, size=4, rows=True))
    [(0, 8), (8, 16)]
    """
    size, width = size or CHUNK, max(width, 1)
    step = max(size // width, 1) * width if rows or width <= size else size
    for start in range(0, numel, step):
        yield start, min(start + step, numel)


@dataclass(frozen=True)
class Chunk:
    """The same range of one tensor, flattened, of every model.

    Attributes:
        models: [n, k]. numpy: float32, or uint16 that holds bfloat16's bits (the kernels take
            either; `fp32` gives numbers). torch: float32.
        base: [k], as `models`; None where the method has no base.
        start: the flat index of the first entry.
        width: entries in a row of the tensor (its last dimension); chunks hold whole rows, unless
            a row is longer and the method does not ask for whole ones.
        key: of (seed, tensor name), 64 bits, for methods that draw random numbers.
        statistics: [n, k] float32, for methods whose statistics have the tensor's shape.
        offset: where a whole model was measured, the entries of all tensors before this one.
        at: [k] the flat index of every entry of a sample; None where they follow each other.
    """

    models: Array
    base: Array | None
    start: int
    width: int
    key: int = 0
    statistics: Array | None = None
    offset: int = 0
    at: np.ndarray | None = None

    @property
    def places(self) -> np.ndarray:
        """The flat index of each entry: [k] int64."""
        return self.start + np.arange(self.models.shape[1]) if self.at is None else self.at

    @property
    def n(self) -> int:
        """The number of models."""
        return len(self.models)

    @property
    def fp32(self) -> Array:
        """The models as numbers: [n, k] float32."""
        return floats(self.models)

    @property
    def fp32_base(self) -> Array:
        """The base as numbers: [k] float32."""
        return floats(self.base)

    @property
    def deltas(self) -> Array:
        """The task vectors τᵢ = θᵢ − θ₀: [n, k] float32."""
        return self.fp32 - self.fp32_base

    def part(self, start: int, stop: int) -> "Chunk":
        """The entries from `start` to before `stop`, counted from the chunk's first."""
        return replace(
            self,
            models=self.models[:, start:stop],
            base=None if self.base is None else self.base[start:stop],
            start=self.start + start,
            statistics=None if self.statistics is None else self.statistics[:, start:stop],
            at=None if self.at is None else self.at[start:stop],
        )

    def parts(self, size: int) -> "list[Chunk]":
        """Parts of `size` entries, the last perhaps of fewer."""
        count = self.models.shape[1]
        return [self.part(at, min(at + size, count)) for at in range(0, count, size)]


class Rows(Protocol):
    """A matrix of statistics that may be larger than memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def read(self, start: int, stop: int) -> Array:
        """The rows from `start` to before `stop`: [stop - start, …] float32."""
        ...


class Whole(Protocol):
    """All chunks of one tensor, or of all tensors of a model: what a first pass walks over.

    Attributes:
        n: the number of models.
        numel: of the tensor (of all tensors).
        shape: of the tensor; () for a whole model.
        has_base: whether its chunks have a base.
        statistics: one a model, for methods that ask for them.
    """

    n: int
    has_base: bool
    numel: int
    shape: tuple[int, ...]
    statistics: Sequence[Rows]

    def map(self, function: Callable[[Chunk], T]) -> list[T]:
        """Apply `function` to every chunk; the results in the order of the chunks.

        Chunks share their memory: what `function` returns must not refer to it.
        """
        ...

    def walk(self) -> Iterator[Chunk]:
        """Every chunk, one after the other, for sums that are too large to keep one a chunk.

        They share their memory as those of `map` do.
        """
        ...

    def chunk(self, index: int) -> Chunk:
        """One chunk again; it shares its memory as those of `map` do."""
        ...

    def sample(self, count: int) -> Chunk:
        """About `count` entries (all, if there are fewer), spread evenly, always the same ones."""
        ...
