"""A plan as plain data: what `--dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelglue.merge.plan import MergePlan
    from modelglue.merge.tensor_plan import Source, TensorPlan


def describe(plan: MergePlan) -> dict[str, Any]:
    """The whole plan: every output tensor and where it comes from, and what it will take."""
    return {
        "method": plan.method,
        "models": [model.name for model in plan.models],
        "base": plan.base.name if plan.base else None,
        "statistics": [statistics.name for statistics in plan.statistics],
        "dtypes": sorted({tensor.dtype for tensor in plan.tensors}),
        "bytes_to_read": plan.bytes_to_read,
        "bytes_to_write": plan.bytes_to_write,
        "vocabulary": dict(plan.tokenizer.report) if plan.tokenizer is not None else {},
        "notes": list(plan.notes),
        "tensors": [_tensor(plan, tensor) for tensor in plan.tensors],
    }


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
