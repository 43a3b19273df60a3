"""MergePlan → a checkpoint on disk, in bounded memory.

Chunks of rows are read from every model, merged in fp32 and written to their place; a few threads
do so side by side, so that reading, arithmetic and writing overlap. Nothing but the chunks under
way is held: `threads` × (models + 2) × 4 MiB or so.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from torch import Tensor

from modelglue.checkpoint.card import model_card
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.merge.chunks import merge_rows, row_chunks
from modelglue.merge.plan import MergePlan, TensorPlan

Progress = Callable[[int, int], None]
"""(elements written, elements to write)"""


def execute(
    plan: MergePlan,
    out: Path,
    *,
    threads: int | None = None,
    card: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Carry the plan out and write a Hugging Face checkpoint that stands completely or not at all.

    Args:
        plan: what to do.
        out: the folder to make; it must not be there.
        threads: how many chunks are under way at a time; by default one a core.
        card: the model card; by default one with the plan's full provenance.
        progress: called after every chunk, from the thread that called `execute`.

    Raises:
        OutputExists: `out` is there.
        OutOfSpace: the disk cannot hold the result; nothing is written.
        NonFiniteTensor: an input or the result holds NaN or infinity; nothing is left behind.
    """
    threads = threads or os.cpu_count() or 1
    total = sum(tensor.numel for tensor in plan.tensors)
    done = 0
    with CheckpointWriter(out, plan.layout) as writer:

        def work(tensor: TensorPlan, rows: slice) -> int:
            merged = merge_rows(plan, tensor, rows, _reader(plan, tensor))
            writer.write(tensor.name, merged, start_row=rows.start)
            return merged.numel()

        pieces = ((tensor, rows) for tensor in plan.tensors for rows in row_chunks(tensor))
        with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
            for finished in _bounded(pool, work, pieces, limit=2 * threads):
                done += finished
                if progress is not None:
                    progress(done, total)
        writer.commit(
            config=output_config(plan),
            files_from=plan.template,
            card=card if card is not None else provenance(plan, out.name),
        )
    return out


def output_config(plan: MergePlan) -> dict[str, object]:
    """The template's configuration, its dtype what the plan writes."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    config = dict(plan.template.config)
    written = {tensor.dtype for tensor in plan.tensors}
    if len(written) == 1 and (dtype := names.get(written.pop())):
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    return config


def provenance(plan: MergePlan, name: str) -> str:
    """The model card that says what the checkpoint was made of and how."""
    inputs = [*plan.models, *([plan.base] if plan.base else [])]
    return model_card(
        name,
        method=plan.method,
        inputs=[(model.name, model.ref, model.fingerprint()) for model in inputs],
        config=plan.config.to_mapping(),
    )


def _reader(plan: MergePlan, tensor: TensorPlan) -> Callable[[int | None, slice], Tensor]:
    def read(model: int | None, rows: slice) -> Tensor:
        if model is not None:
            return plan.models[model].read(tensor.sources[model], rows)
        if plan.base is None or tensor.base is None:
            raise ValueError(f"{tensor.name}: the plan has no base")
        return plan.base.read(tensor.base, rows)

    return read


def _bounded(
    pool: ThreadPoolExecutor,
    work: Callable[[TensorPlan, slice], int],
    pieces: Iterable[tuple[TensorPlan, slice]],
    *,
    limit: int,
) -> Iterator[int]:
    """Results as they come, with at most `limit` pieces under way; the first error ends it."""
    under_way: set[Future[int]] = set()
    try:
        for piece in pieces:
            if len(under_way) >= limit:
                finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
            under_way.add(pool.submit(work, *piece))
        yield from (future.result() for future in under_way)
    finally:
        for future in under_way:
            future.cancel()
