"""Tiny tensors that lie side by side in their files, read at once: calls cost more than they do."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.spec import TensorSpec
from modelglue.merge.plan.merge_plan import MergePlan, TensorPlan

_MOST = 1 << 20
"""Bytes of one checkpoint that are read ahead; what lies farther apart is read by itself."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a file."""

    file: Path
    first: int
    content: np.ndarray

    def of(self, spec: TensorSpec, start: int, nbytes: int) -> np.ndarray | None:
        """Bytes of a tensor that is `as_stored`, from its byte `start` on: [nbytes] uint8.

        None if they are not here.
        """
        at = spec.offset + start - self.first
        if spec.file is not self.file or at < 0 or at + nbytes > len(self.content):
            return None
        return self.content[at : at + nbytes]


def read_ahead(plan: MergePlan, tensors: Iterable[TensorPlan]) -> Mapping[int, Span]:
    """For each checkpoint, by its id, the stretch that holds its part of these tensors."""
    bounds: dict[int, tuple[Checkpoint, Path, int, int]] = {}
    for tensor in tensors:
        for source in tensor.sources if tensor.base is None else (*tensor.sources, tensor.base):
            checkpoint = plan.checkpoint(source)
            spec = checkpoint.tensors.get(source.name)
            if spec is None or not checkpoint.as_stored(source.name):
                continue
            first, end = spec.offset, spec.offset + spec.nbytes
            if (found := bounds.get(id(checkpoint))) is None:
                bounds[id(checkpoint)] = checkpoint, spec.file, first, end
            elif found[1] is spec.file and max(end, found[3]) - min(first, found[2]) <= _MOST:
                bounds[id(checkpoint)] = (*found[:2], min(first, found[2]), max(end, found[3]))
    spans = {}
    for key, (checkpoint, file, first, end) in bounds.items():
        content = np.empty(end - first, np.uint8)
        checkpoint.read_bytes(file, content.data, start=first)
        spans[key] = Span(file, first, content)
    return spans
