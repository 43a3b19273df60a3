"""Chunks of a plan's tensors, read from checkpoints into buffers that are used again.

Nothing of a model is held but the chunk under way, and what is given as held: that is not read, and
where all of a chunk lies together not even copied. bfloat16 stays as it is stored; anything else
becomes float32 as it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from modelglue.checkpoint.output_file import PAGE
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import UnsupportedCheckpoint
from modelglue.merge.arrays import Array, floats
from modelglue.merge.chunk import Chunk, Rows, ranges
from modelglue.merge.engine.ahead import Span
from modelglue.merge.engine.held import STORED, Held
from modelglue.merge.kernels.random import tensor_key
from modelglue.merge.method import METHODS
from modelglue.merge.plan.merge_plan import MergePlan, TensorPlan
from modelglue.merge.vocabulary.rows import runs

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_RUN = 4096
"""Entries that a sample reads at a time."""


class Workspace:
    """The buffers of one thread, each as large as the largest that was asked for.

    Args:
        device: where the arithmetic runs; None for numpy on the CPU.

    Attributes:
        ahead: what was read before it is needed, by the checkpoint's id.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        self.ahead: Mapping[int, Span] = {}
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, slot: str, shape: tuple[int, ...], dtype: Any, *, phase: int = 0) -> np.ndarray:
        """An array over the buffer of that name, which begins so many bytes into a page.

        What the buffer held is lost.
        """
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._buffers.get(slot)
        if buffer is None or len(buffer) < nbytes + PAGE:
            buffer = self._buffers[slot] = _pages(nbytes + PAGE)
        found: np.ndarray = buffer[phase : phase + nbytes].view(dtype).reshape(shape)
        return found

    def place(self, array: np.ndarray) -> Array:
        """The array as the kernels take it: itself, or float32 on the device."""
        if self.device is None:
            return array
        import torch

        tensor = torch.from_numpy(array)
        if array.dtype == np.uint16:
            tensor = tensor.view(torch.bfloat16)
        # A copy: the buffer is overwritten while the device may still be reading.
        return tensor.to(self.device, torch.float32, copy=True)


class TensorReader:
    """One tensor of a plan as a whole made of chunks; see `chunk.Whole`.

    Args:
        plan: whose tensor it is.
        tensor: the tensor.
        workspace: buffers of the thread that reads.
        offset: entries of the tensors before, where a whole model is measured.
        held: tensors that need not be read.
    """

    def __init__(
        self,
        plan: MergePlan,
        tensor: TensorPlan,
        workspace: Workspace,
        *,
        offset: int = 0,
        held: Held | None = None,
    ) -> None:
        self.n = len(tensor.sources)
        self.numel = tensor.numel
        self.shape, self.has_base = tensor.shape, tensor.base is not None
        self._plan, self._tensor, self._workspace = plan, tensor, workspace
        self._offset, self._held = offset, held
        self._width = tensor.shape[-1] if tensor.shape else 1
        seed = tensor.parameters.get("seed")
        self._key = 0 if seed is None else tensor_key(int(seed), tensor.name)
        checkpoint, below = plan.checkpoint, tensor.base
        self._sources = [(checkpoint(source), source.name) for source in tensor.sources]
        self._base = None if below is None else (checkpoint(below), below.name)
        every = [*self._sources, *([] if self._base is None else [self._base])]
        stored = {model.tensors[name].dtype for model, name in every}
        united = tensor.union is not None
        self._dtype: Any = np.uint16 if stored == {"BF16"} and not united else np.float32
        rows = [
            _Statistics(plan.statistics[source.model], source.name, held, workspace.device)
            for source in tensor.statistics
            if source is not None and source.model is not None
        ]
        self.statistics: Sequence[Rows] = rows if len(rows) == self.n else ()
        self._only: Chunk | None = None

    @cached_property
    def ranges(self) -> list[tuple[int, int]]:
        """The chunks, as flat ranges."""
        rows, width = METHODS[self._tensor.method].rows(self._tensor.parameters), self._width
        if self._tensor.union is not None:  # what is united are whole rows, one a token
            rows, width = True, math.prod(self.shape[1:] or self.shape)
        return list(ranges(self.numel, width, rows=rows))

    def map(self, function: Callable[[Chunk], T]) -> list[T]:
        """Apply `function` to every chunk, in order."""
        return [function(self.read(start, stop)) for start, stop in self.ranges]

    def walk(self) -> Iterator[Chunk]:
        """Every chunk, in order."""
        return (self.read(start, stop) for start, stop in self.ranges)

    def chunk(self, index: int) -> Chunk:
        """One chunk again."""
        return self.read(*self.ranges[index])

    def read(self, start: int, stop: int) -> Chunk:
        """The entries from `start` to before `stop`; a tensor of one chunk is read once."""
        if self._only is not None and stop - start == self.numel:
            return self._only
        models, base = self._arrays([(start, stop)])
        chunk = self._chunk(models, base, start, self._same(start, stop))
        if stop - start == self.numel:
            self._only = chunk
        return chunk

    @property
    def exact(self) -> bool:
        """Whether it stays as it is, but is stored in a dtype that float32 cannot hold."""
        tensor = self._tensor
        return (
            tensor.dtype == "F64"
            and tensor.union is None
            and self._sources[0][0].spec(self._sources[0][1]).dtype == "F64"
            and METHODS[tensor.method].keeps(tensor.parameters)
        )

    def stored(self, start: int, stop: int, *, phase: int = 0) -> np.ndarray:
        """The first source's entries in the dtype of their file: [stop - start].

        Args:
            start, stop: the flat range.
            phase: how many bytes into a page they shall begin.
        """
        checkpoint, name = self._sources[0]
        dtype = np.dtype(STORED[checkpoint.spec(name).dtype])
        found = self._workspace.array("out", (stop - start,), dtype, phase=phase)
        checkpoint.read_into(name, found.data, start=start * dtype.itemsize)
        return found

    def sample(self, count: int) -> Chunk:
        """Runs of entries, spread evenly."""
        unit = min(max(count, 1), _RUN)
        if self._tensor.union is not None:
            unit = max(math.prod(self.shape[1:]), 1)
        pieces = max(1, min(count // unit, self.numel // unit))
        step = self.numel // pieces // unit * unit or self.numel
        starts = [i * step for i in range(pieces)]
        parts = [(s, min(s + unit, self.numel)) for s in starts]
        at = np.concatenate([np.arange(*part) for part in parts])
        self._only = None  # the buffers are its
        return replace(self._chunk(*self._arrays(parts), 0, None), at=at)

    def _chunk(self, models: Array, base: Array | None, start: int, statistics: Any) -> Chunk:
        return Chunk(models, base, start, self._width, self._key, statistics, self._offset)

    def _arrays(self, parts: list[tuple[int, int]]) -> tuple[Array, Array | None]:
        """[n, k] of the sources and [k] of the base: these ranges, one after the other."""
        if self._held is not None and self._tensor.union is None:
            found = self._held.read(
                self._sources,
                self._base,
                parts,
                dtype=self._dtype,
                device=self._workspace.device,
            )
            if found is not None:
                return found
        models, base = self._copied(parts)
        place = self._workspace.place
        return place(models), None if base is None else place(base)

    def _copied(self, parts: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray | None]:
        if self._tensor.union is not None:
            return self._united(parts)
        k = sum(stop - start for start, stop in parts)
        models = self._workspace.array("models", (self.n, k), self._dtype)
        for row, source in zip(models, self._sources, strict=True):
            self._fill(source, parts, row)
        if self._base is None:
            return models, None
        base = self._workspace.array("base", (k,), self._dtype)
        self._fill(self._base, parts, base)
        return models, base

    def _fill(
        self, source: tuple[Checkpoint, str], parts: list[tuple[int, int]], target: np.ndarray
    ) -> None:
        at = 0
        for start, stop in parts:
            self._read(*source, start, target[at : at + stop - start])
            at += stop - start

    def _read(self, checkpoint: Checkpoint, name: str, start: int, target: np.ndarray) -> None:
        """The entries of a tensor from `start` on, as many as `target` holds, in its dtype."""
        spec = checkpoint.spec(name)
        stored = spec.dtype
        if stored not in STORED:
            raise UnsupportedCheckpoint(
                f"{name}: {checkpoint.name} stores it as {stored}, which cannot be merged. "
                "Convert the model to BF16 first."
            )
        dtype = np.dtype(STORED[stored])
        held = None if self._held is None else self._held.array(checkpoint, name)
        ahead = self._workspace.ahead.get(id(checkpoint))
        size = dtype.itemsize
        near = None
        if ahead is not None and checkpoint.as_stored(name):
            near = ahead.of(spec, start * size, len(target) * size)
        if isinstance(held, np.ndarray):
            raw = held[start : start + len(target)]
        elif near is not None:
            raw = near.view(dtype)
        else:
            raw = target
            if dtype != target.dtype:
                raw = self._workspace.array("raw", target.shape, dtype)
            checkpoint.read_into(name, raw.data, start=start * size)
        if raw is target:
            return
        if dtype == target.dtype:
            target[:] = raw
        elif dtype == np.uint16:
            from modelglue.merge.kernels import loops

            loops.decode(raw, target)
        else:
            with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is found
                target[:] = raw

    def _same(self, start: int, stop: int) -> Array | None:
        """[n, k] of the statistics, where they have the tensor's shape."""
        if not self.statistics or any(rows.shape != self.shape for rows in self.statistics):
            return None
        found = self._workspace.array("statistics", (self.n, stop - start), np.float32)
        for row, source in zip(found, self._tensor.statistics, strict=True):
            if source is not None and source.model is not None:
                self._read(self._plan.statistics[source.model], source.name, start, row)
        return self._workspace.place(found)

    def _united(self, parts: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray | None]:
        union = self._tensor.union
        if union is None:
            raise ValueError(f"{self._tensor.name}: nothing to unite")
        width = max(math.prod(self.shape[1:]), 1)

        def read(model: int | None, rows: np.ndarray) -> np.ndarray:
            source = self._base if model is None else self._sources[model]
            if source is None:
                raise ValueError(f"{self._tensor.name}: there is no base to lend a row")
            found = np.empty((len(rows), width), np.float32)
            at = 0
            for first, count in runs(rows):
                target = found[at : at + count].reshape(-1)
                self._read(*source, first * width, target)
                at += count
            return found

        pieces = [union.gather(read, slice(a // width, b // width)) for a, b in parts]
        models = np.concatenate([piece for piece, _ in pieces], axis=1)
        bases = [piece for _, piece in pieces if piece is not None]
        return models, np.concatenate(bases) if bases else None


class _Statistics:
    """A tensor of statistics, read by rows."""

    def __init__(
        self, checkpoint: Checkpoint, name: str, held: Held | None, device: str | None
    ) -> None:
        self._checkpoint, self._name, self._device = checkpoint, name, device
        self._held = None if held is None else held.array(checkpoint, name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._checkpoint.spec(self._name).shape

    def read(self, start: int, stop: int) -> Array:
        if self._held is not None:
            rows = floats(self._held.reshape(self.shape)[start:stop])
            return rows if isinstance(rows, np.ndarray) else rows.to(self._device)
        found: torch.Tensor = self._checkpoint.read(self._name, slice(start, stop))
        return found.float().numpy()


def _pages(nbytes: int) -> np.ndarray:
    """[nbytes] uint8 that begin a page."""
    room = np.empty(nbytes + PAGE, np.uint8)
    return room[-room.ctypes.data % PAGE :][:nbytes]
