"""The one kernel that both executors run, on one grid of chunks, so that they agree to the bit."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from modelglue.checkpoint.spec import torch_dtype
from modelglue.errors import NonFiniteTensor
from modelglue.merge.method import METHODS
from modelglue.merge.plan import MergePlan, TensorPlan

CHUNK = 1 << 20
"""Elements of one model that are worked on at a time (4 MiB of fp32)."""

Read = Callable[[int | None, slice], Tensor]
"""(model index, or None for the base; rows) → [rows, …] in any floating dtype."""


def row_chunks(tensor: TensorPlan, *, chunk: int | None = None) -> Iterator[slice]:
    """Split the tensor's rows so that each piece has about `chunk` elements, at least one row."""
    chunk = chunk or CHUNK
    rows = tensor.shape[0] if tensor.shape else 1
    width = math.prod(tensor.shape[1:])
    step = max(1, chunk // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def merge_rows(plan: MergePlan, tensor: TensorPlan, rows: slice, read: Read) -> Tensor:
    """Merge some rows of one tensor, in fp32 with one cast at the end.

    Returns:
        [rows, …] in the plan's dtype; a tensor that is no weight as the first model has it.

    Raises:
        NonFiniteTensor: the result holds NaN or infinity, as it does wherever an input does.
    """
    first = read(0, rows)
    if tensor.copied:
        return first
    method = METHODS[plan.method]
    n = len(plan.models)
    stack = torch.empty((n, first.numel()), dtype=torch.float32, device=first.device)
    stack[0].copy_(first.reshape(-1))
    for model in range(1, n):
        stack[model].copy_(read(model, rows).reshape(-1))
    base = read(None, rows).reshape(-1).float() if plan.reads_base else None
    merged = method.combine(stack, base, **_arguments(tensor, n, stack.device))
    merged = merged.to(torch_dtype(tensor.dtype))
    if not torch.isfinite(merged).all():
        raise NonFiniteTensor(_blame(plan, tensor, stack, base))
    return merged.reshape(first.shape)


def _arguments(tensor: TensorPlan, n: int, device: torch.device) -> dict[str, Tensor | float]:
    return {
        name: torch.tensor(value, dtype=torch.float32, device=device)
        if isinstance(value, tuple)
        else value
        for name, value in tensor.parameters.items()
    }


def _blame(plan: MergePlan, tensor: TensorPlan, stack: Tensor, base: Tensor | None) -> str:
    inputs = [(model.name, part) for model, part in zip(plan.models, stack, strict=True)]
    if base is not None and plan.base is not None:
        inputs.append((plan.base.name, base))
    for name, part in inputs:
        bad = int((~torch.isfinite(part)).sum())
        if bad:
            return (
                f"{tensor.name}: {name} holds {bad} values that are NaN or infinite. Leave it out."
            )
    return (
        f"{tensor.name}: the result does not fit {tensor.dtype}. Look at the weights, or write "
        "dtype: float32."
    )
