"""Where NaN or infinity in a result came from. Takes its time: it is asked once, before the end."""

from collections.abc import Iterator

from modelglue.checkpoint.reader import Checkpoint
from modelglue.merge.arrays import Array, namespace
from modelglue.merge.engine.reading import TensorReader, Workspace
from modelglue.merge.method import METHODS
from modelglue.merge.plan.merge_plan import MergePlan, TensorPlan

_ROWS = 1024


def blame(plan: MergePlan, tensor: TensorPlan, chunk: tuple[int, int], workspace: Workspace) -> str:
    """A sentence that names tensor and model, or says that the result is too large.

    Args:
        plan: whose tensor it is.
        tensor: whose result is not finite.
        chunk: where that was seen; looked at first.
        workspace: buffers to read into.
    """
    method = METHODS[tensor.method]
    suspects = [tensor]
    if method.reach(tensor.parameters) == "model":
        # They were measured together: what one of them holds can spoil them all.
        alike = (t for t in plan.tensors if t.method == tensor.method and not t.copied)
        suspects += [other for other in alike if other is not tensor]
    for suspect in suspects:
        reader = TensorReader(plan, suspect, workspace)
        first = [chunk] if suspect is tensor else []
        for part in [*first, *(each for each in reader.ranges if each not in first)]:
            for checkpoint, numbers in _inputs(plan, suspect, reader, part):
                if bad := _count(numbers):
                    return (
                        f"{suspect.name}: {checkpoint.name} holds values that are NaN or infinite "
                        f"({bad} of those from number {part[0]:,} to {part[1]:,}). Leave it out, "
                        "or go on with --allow-nonfinite."
                    )
        for checkpoint, numbers in _grams(plan, suspect, reader):
            if bad := _count(numbers):
                return (
                    f"{suspect.name}: {checkpoint.name} holds statistics that are NaN or infinite "
                    f"({bad} of them). Compute them again."
                )
    return (
        f"{tensor.name}: the result does not fit {tensor.dtype}. Look at the weights, or write "
        "dtype: float32."
    )


def _inputs(
    plan: MergePlan, tensor: TensorPlan, reader: TensorReader, part: tuple[int, int]
) -> Iterator[tuple[Checkpoint, Array]]:
    read = reader.read(*part)
    for source, numbers in zip(tensor.sources, read.fp32, strict=True):
        yield plan.checkpoint(source), numbers
    if tensor.base is not None:
        yield plan.checkpoint(tensor.base), read.fp32_base
    if read.statistics is not None:
        for holder, numbers in zip(tensor.statistics, read.statistics, strict=True):
            if holder is not None and holder.model is not None:
                yield plan.statistics[holder.model], numbers


def _grams(
    plan: MergePlan, tensor: TensorPlan, reader: TensorReader
) -> Iterator[tuple[Checkpoint, Array]]:
    """Statistics of another shape than the tensor's, some rows at a time."""
    for source, rows in zip(tensor.statistics, reader.statistics, strict=False):
        if source is None or source.model is None or rows.shape == tensor.shape:
            continue
        for start in range(0, rows.shape[0], _ROWS):
            stop = min(start + _ROWS, rows.shape[0])
            yield plan.statistics[source.model], rows.read(start, stop)


def _count(numbers: Array) -> int:
    return int((~namespace(numbers).isfinite(numbers)).sum())
