"""A plan as plain data: what `--dry-run` prints."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from modelglue.merge.chunk import CHUNK
from modelglue.merge.method import METHODS

if TYPE_CHECKING:
    from modelglue.checkpoint.reader import Checkpoint
    from modelglue.merge.plan.merge_plan import MergePlan
    from modelglue.merge.plan.tensor_plan import Source, TensorPlan

_LOOPS = 16 << 20
"""What the compiled loops and the interpreter take beside buffers."""

_BLOCKS = 64 << 20
"""What linear algebra takes beside its matrices."""

# One loop from the stored values to the result. What others hold beside it is not known.
_FUSED = frozenset(
    "linear task_arithmetic ties dare_linear dare_ties breadcrumbs breadcrumbs_ties slerp fisher "
    "model_stock nuslerp multislerp karcher passthrough".split()
)


def describe(plan: MergePlan, *, threads: int | None = None) -> dict[str, Any]:
    """The whole plan: every output tensor and where it comes from, and what it will take.

    Args:
        plan: what to describe.
        threads: for the memory; by default one a core.
    """
    threads = threads or len(os.sched_getaffinity(0))
    return {
        "method": plan.method,
        "models": _models(plan),
        "base": plan.base.name if plan.base else None,
        "statistics": [_statistics(statistics) for statistics in plan.statistics],
        "measured": measured(plan),
        "dtypes": sorted({tensor.dtype for tensor in plan.tensors}),
        "threads": threads,
        "memory": memory(plan, threads=threads),
        "bytes_to_read": plan.bytes_to_read,
        "bytes_to_write": plan.bytes_to_write,
        "vocabulary": dict(plan.tokenizer.report) if plan.tokenizer is not None else {},
        "notes": list(plan.notes),
        "tensors": [_tensor(plan, tensor) for tensor in plan.tensors],
    }


def measured(plan: MergePlan) -> str | None:
    """Of what a first pass finds thresholds, angles or norms: "tensor", "model", None for no pass.

    Such a pass reads its sources once more, mostly from the page cache.
    """
    reaches = {
        METHODS[tensor.method].reach(tensor.parameters)
        for tensor in plan.tensors
        if not tensor.copied
    }
    return "model" if "model" in reaches else "tensor" if "tensor" in reaches else None


def memory(plan: MergePlan, *, threads: int) -> int:
    """About the most bytes that a merge on the CPU allocates, whatever the size of the models.

    Counted: in each thread a chunk of every source as it is read, the result as float32 and as it
    is written, what a first pass collects of each model; `regmean`'s matrices while one is solved
    for; and 16 MiB for compiled loops. Not counted: the interpreter with its libraries as it
    stands before the merge (about 40 MB), the plan itself (about 1 kB a tensor), and pages of
    files that the system caches. Methods that are not one compiled loop are counted generously.
    """
    most = max((_chunk_bytes(plan, tensor) for tensor in plan.tensors), default=0)
    solved = max((_solver_bytes(tensor) for tensor in plan.tensors), default=0)
    results = max((_solved_bytes(tensor) for tensor in plan.tensors), default=0)
    return _LOOPS + solved + threads * (most + results)


def _chunk_bytes(plan: MergePlan, tensor: TensorPlan) -> int:
    """Bytes that a thread holds for a chunk of the tensor."""
    whole_rows = METHODS[tensor.method].rows(tensor.parameters)
    entries = max(CHUNK, tensor.shape[-1]) if whole_rows and tensor.shape else CHUNK
    return entries * _entry_bytes(plan, tensor)


def _entry_bytes(plan: MergePlan, tensor: TensorPlan) -> int:
    """Bytes that a thread holds for every entry of a chunk of the tensor."""
    if tensor.copied:
        return 0
    method = METHODS[tensor.method]
    sources = [*tensor.sources, *([tensor.base] if tensor.base else [])]
    stored = {plan.spec(source).dtype for source in sources}
    plain = stored == {"BF16"} and tensor.union is None
    total = len(sources) * (2 if plain else 4)
    if not plain and stored != {"F32"}:
        total += 8 if "F64" in stored else 4
    if tensor.union is not None:
        total *= 2
    if any(tensor.statistics) and method.statistics == "same":
        total += 4 * len(sources)
    if method.reach(tensor.parameters) != "chunk":
        total += 2 * len(sources)
    if tensor.method not in _FUSED:
        total += 8 * len(sources) + 40
    return total + 4 + (2 if tensor.dtype in ("BF16", "F16") else 0)


def _solver_bytes(tensor: TensorPlan) -> int:
    """What `regmean` takes while it solves for one matrix; one thread at a time does."""
    if not _solved_bytes(tensor):
        return 0
    return 16 * tensor.shape[-1] ** 2 + 2 * _solved_bytes(tensor) + _BLOCKS


def _solved_bytes(tensor: TensorPlan) -> int:
    """The result that a thread of `regmean` holds until it is written."""
    if METHODS[tensor.method].statistics != "gram" or not any(tensor.statistics):
        return 0
    return 4 * tensor.numel


def _models(plan: MergePlan) -> list[dict[str, Any]]:
    """Every model with its roles, in the order in which they were named, a base apart last."""
    merged = {id(plan.checkpoint(source)) for tensor in plan.tensors for source in tensor.sources}
    bases = {id(plan.checkpoint(tensor.base)) for tensor in plan.tensors if tensor.base is not None}
    everyone = [*plan.models]
    if plan.base is not None and not any(model is plan.base for model in plan.models):
        everyone.append(plan.base)
    return [
        {
            "name": model.name,
            "from": model.ref,
            "merged": id(model) in merged,
            "base": id(model) in bases or model is plan.base,
            "subtracted": id(model) in bases,
            "template": model is plan.template,
        }
        for model in everyone
    ]


def _statistics(statistics: Checkpoint) -> dict[str, Any]:
    known = {key: statistics.config.get(key) for key in ("kind", "tokens")}
    return {"name": statistics.name, "from": statistics.ref, **known}


def _tensor(plan: MergePlan, tensor: TensorPlan) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "sources": [_source(plan, source) for source in tensor.sources],
        "base": _source(plan, tensor.base) if tensor.base else None,
        "statistics": [
            None if source is None or source.model is None else _of_statistics(plan, source)
            for source in tensor.statistics
        ],
        "parameters": dict(tensor.parameters),
        "copied": tensor.copied,
        "united": tensor.union is not None,
    }


def _source(plan: MergePlan, source: Source) -> dict[str, str]:
    return {"model": plan.checkpoint(source).name, "tensor": source.name}


def _of_statistics(plan: MergePlan, source: Source) -> dict[str, str]:
    return {"model": plan.statistics[source.model or 0].name, "tensor": source.name}
