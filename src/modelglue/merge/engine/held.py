"""Tensors of checkpoints kept in memory, as far as a budget goes, for merges without end.

Tensors of one name are kept together, each as it is stored, so that those of all models are one
view and nothing is copied, where they are small. What the budget does not hold is read from disk
again for every merge, where the page cache may have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from modelglue.checkpoint.reader import Checkpoint
from modelglue.machine import memory_of
from modelglue.merge.arrays import Array
from modelglue.merge.engine.places import Places

STORED: dict[str, Any] = {
    "BF16": np.uint16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
"""safetensors' name of a floating dtype → what numpy reads it as; bfloat16 as its bits."""


class Held:
    """Tensors in memory, found by checkpoint and name.

    Args:
        checkpoints: whose tensors are kept, name by name in the order of the first, as long as all
            of a name fit.
        memory: bytes; None for half of what the machine, or the device, has in all.
        device: a torch device, or None for numpy arrays.
        places: says both, name by name, where a module stands on several devices.

    Attributes:
        nbytes: of what is kept.
    """

    def __init__(
        self,
        checkpoints: Iterable[Checkpoint] = (),
        *,
        memory: int | None = None,
        device: str | None = None,
        places: Places | None = None,
    ) -> None:
        self._standing = places or Places(device)
        self.device = self._standing.first
        self.nbytes = 0
        self._room = dict(self._standing.room)
        if not self._room:
            self._room[self.device] = memory_of(self.device) // 2 if memory is None else memory
        self._places: dict[tuple[int, str], tuple[Array, int]] = {}
        # Kept, so that the ids stay their own.
        self._checkpoints = list({id(each): each for each in checkpoints}.values())
        for name in dict.fromkeys(name for each in self._checkpoints for name in each.tensors):
            self._keep(name, [each for each in self._checkpoints if name in each.tensors])

    def array(self, checkpoint: Checkpoint, name: str) -> Array | None:
        """A tensor as it is stored: [numel]; None if it is not kept."""
        found = self._places.get((id(checkpoint), name))
        return None if found is None else found[0][found[1]]

    def stack(self, sources: Sequence[tuple[Checkpoint, str]]) -> Array | None:
        """Several tensors as one view: [n, numel]; None if they do not lie so."""
        found = [self._places.get((id(checkpoint), name)) for checkpoint, name in sources]
        places = [place for place in found if place is not None]
        if len(places) < len(found) or any(stack is not places[0][0] for stack, _ in places):
            return None
        rows = [row for _, row in places]
        step = rows[1] - rows[0] if len(rows) > 1 else 1
        if step < 1 or any(b - a != step for a, b in pairwise(rows)):
            return None
        return places[0][0][rows[0] : rows[-1] + 1 : step]

    def read(
        self,
        sources: Sequence[tuple[Checkpoint, str]],
        base: tuple[Checkpoint, str] | None,
        parts: Sequence[tuple[int, int]],
        *,
        dtype: Any,
        device: str | None = None,
    ) -> tuple[Array, Array | None] | None:
        """Ranges of several tensors as a method takes them: views, or float32 on the device.

        Args:
            sources: n of them.
            base: one more.
            parts: flat ranges, one after the other.
            dtype: of the views.
            device: where numbers shall be; None for where the first are held.

        Returns:
            [n, k] and [k]; None where they are not kept, or would have to be copied first.
        """
        models = self.stack(sources)
        below = None if base is None else self.array(*base)
        if base is not None and below is None:
            return None
        if self.device is not None:
            return self._numbers(models, sources, below, parts, device or self.device)
        if models is None or len(parts) != 1 or models.dtype != dtype:
            return None
        part = slice(*parts[0])
        view = models[:, part]
        # Loops over rows that lie apart are not made into vector code: a copy costs less.
        if not view.flags.c_contiguous:
            return None
        if below is None:
            return view, None
        return (view, below[part]) if below.dtype == dtype else None

    def _numbers(
        self,
        stack: Array | None,
        sources: Sequence[tuple[Checkpoint, str]],
        below: Array | None,
        parts: Sequence[tuple[int, int]],
        device: str,
    ) -> tuple[Array, Array | None] | None:
        import torch

        def numbers(tensor: Array) -> Array:
            ranges = [tensor[..., first:last] for first, last in parts]
            joined = ranges[0] if len(ranges) == 1 else torch.cat(ranges, -1)
            return joined.to(device).float()

        base = None if below is None else numbers(below)
        if stack is not None:
            return numbers(stack), base
        rows = [self.array(*source) for source in sources]
        if any(row is None for row in rows):
            return None
        return torch.stack([numbers(row) for row in rows]), base

    def _keep(self, name: str, having: Sequence[Checkpoint]) -> None:
        alike: dict[tuple[str, int], list[Checkpoint]] = {}
        for checkpoint in having:
            spec = checkpoint.tensors[name]
            alike.setdefault((spec.dtype, spec.numel), []).append(checkpoint)
        size = sum(checkpoint.tensors[name].nbytes for checkpoint in having)
        device = self._standing.of(name)
        if size > self._room[device] or any(dtype not in STORED for dtype, _ in alike):
            return
        self.nbytes += size
        self._room[device] -= size
        for (dtype, numel), group in alike.items():
            stack = self._read(name, dtype, numel, group, device)
            self._places |= {(id(each), name): (stack, row) for row, each in enumerate(group)}

    def _read(
        self, name: str, dtype: str, numel: int, group: Sequence[Checkpoint], device: str | None
    ) -> Array:
        if device is None:
            stack = np.empty((len(group), numel), STORED[dtype])
            for row, checkpoint in zip(stack, group, strict=True):
                checkpoint.read_into(name, row.data)
            return stack
        import torch

        from modelglue.checkpoint.spec import torch_dtype

        tensors = torch.empty((len(group), numel), dtype=torch_dtype(dtype), device=device)
        for place, checkpoint in zip(tensors, group, strict=True):
            place.copy_(checkpoint.read(name).view(-1))
        return tensors
