"""A plan as plain data: what `--dry-run` prints."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from modelglue.merge.chunk import CHUNK

if TYPE_CHECKING:
    from modelglue.merge.plan.merge_plan import MergePlan
    from modelglue.merge.plan.tensor_plan import Source, TensorPlan


def describe(plan: MergePlan) -> dict[str, Any]:
    """The whole plan: every output tensor and where it comes from, and what it will take."""
    return {
        "method": plan.method,
        "models": [model.name for model in plan.models],
        "base": plan.base.name if plan.base else None,
        "statistics": [statistics.name for statistics in plan.statistics],
        "dtypes": sorted({tensor.dtype for tensor in plan.tensors}),
        "memory": memory(plan, threads=os.cpu_count() or 1),
        "bytes_to_read": plan.bytes_to_read,
        "bytes_to_write": plan.bytes_to_write,
        "vocabulary": dict(plan.tokenizer.report) if plan.tokenizer is not None else {},
        "notes": list(plan.notes),
        "tensors": [_tensor(plan, tensor) for tensor in plan.tensors],
    }


def memory(plan: MergePlan, *, threads: int) -> int:
    """About the bytes of buffers that a merge on the CPU holds, whatever the size of the models.

    A thread has a chunk of every source as it is stored and as float32, and what is made of them.
    """
    columns = max((len(t.sources) + (t.base is not None) for t in plan.tensors), default=0)
    return threads * 4 * CHUNK * (2 * columns + 3)


def _tensor(plan: MergePlan, tensor: TensorPlan) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "sources": [_source(plan, source) for source in tensor.sources],
        "base": _source(plan, tensor.base) if tensor.base else None,
        "parameters": dict(tensor.parameters),
        "united": tensor.union is not None,
    }


def _source(plan: MergePlan, source: Source) -> dict[str, str]:
    return {"model": plan.checkpoint(source).name, "tensor": source.name}
