"""Experts' feed-forward parts behind routers, in a stock mixture-of-experts class of transformers.

Attention, norms, embeddings and head come from the dense model, and in each mixed layer the
feed-forward part of every expert stands beside the others' (FFN level of Model-GLUE, arXiv
2410.05357; what mergekit's MoE does). The result needs no code of ours: transformers, vLLM and, for
most families, llama.cpp read it.

Nothing is instantiated, and nothing held but a few chunks: bytes go from file to file, and what is
stored in another dtype than the dense model's is cast on the way.

A stock class renormalises the weights of the experts that answer, so with top_k: 1 the weight is
1 whatever the router says. That is as it should be in use, but no gradient reaches the router:
training lets two experts answer, or takes the form that carries its own modelling file.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modelglue.checkpoint.card import installed_versions, model_card
from modelglue.checkpoint.reader import Checkpoint, tensor_bytes
from modelglue.checkpoint.spec import nbytes_of, torch_dtype
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.errors import MixtureError
from modelglue.merge.engine.crew import Crew, Job
from modelglue.merge.engine.reading import Workspace
from modelglue.mixture.conditions import as_json, shown
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.stock_plan import Output, Part, StockPlan, make_stock_plan
from modelglue.mixture.stock_target import StockTarget, stock_target

__all__ = ["StockTarget", "copy_jobs", "stock_target", "write_stock"]

_CHUNK = 4 << 20
"""Elements that a thread has in hand."""


def write_stock(
    out: str | Path,
    experts: Mapping[str, str | Path],
    dense: str | Path,
    routers: Sequence[LinearRouter] | None,
    *,
    kind: MixtureKind,
    reasons: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> Path:
    """Write a mixture as a checkpoint of a stock class.

    Killed or interrupted, the same call goes on where it stopped.

    Args:
        out: the folder to make; it must not be there.
        experts: name → folder of the model whose feed-forward parts it has, in the order of the
            routers' rows.
        dense: the folder of the model that everything else comes from.
        routers: one a mixed layer, [experts, hidden], without bias (one that is the same for all
            experts says nothing and is left out); None for zeros, which a training may start from.
        kind: F-L-T of some sort.
        reasons: name → why it is in, for the model card.
        threads: chunks under way at a time; by default one a core, four at most.

    Returns:
        `out`.

    Raises:
        MixtureError: there is no stock form, or models or routers do not fit; all that is wrong.
        CheckpointError: a model cannot be read.
        OutputExists, OutOfSpace: as `CheckpointWriter`.
    """
    with ExitStack() as opened:
        model = opened.enter_context(Checkpoint.open(dense))
        target = stock_target(model.config, kind)
        if isinstance(target, str):
            raise MixtureError(f"{dense}: no stock form. {target[0].upper()}{target[1:]}")
        # One checkpoint for all that name it: it is read once, and its files opened once.
        models = {Path(path): Checkpoint.open(path) for path in dict.fromkeys(experts.values())}
        for found in models.values():
            opened.enter_context(found)
        chosen = {name: models[Path(path)] for name, path in experts.items()}
        plan = make_stock_plan(model, chosen, routers, target)
        config, conditions = dict(plan.config), [router.condition for router in routers or ()]
        if conditions:
            told = {"conditions": as_json(conditions)}
            config["modelglue"] = {**config["modelglue"], **told}
        purpose = _purpose(plan, [model, *models.values()])
        with CheckpointWriter(out, plan.layout, purpose=purpose) as writer:
            todo = [output for output in plan.outputs if output.name not in writer.finished]
            crew = Crew(threads or min(4, len(os.sched_getaffinity(0))), Workspace)
            crew.run([job for output in todo for job in copy_jobs(output, writer)])
            return writer.commit(
                config=config,
                files_from=model,
                card=_card(Path(out).name, plan, model, chosen, reasons or {}, conditions),
            )


def copy_jobs(output: Output, writer: CheckpointWriter) -> Iterator[Job]:
    """What there is to write of a tensor, a chunk a job."""
    if output.values is not None:
        values = output.values.contiguous()

        def write(_: Workspace) -> list[Job]:
            writer.write(output.name, values)
            return []

        yield Job(write, values.numel())
    at = 0
    for part in output.parts:
        numel = math.prod(part.shape)
        for start in range(0, numel, _CHUNK):
            count = min(_CHUNK, numel - start)
            yield Job(_Copy(output, part, start, at + start, count, writer), count)
        at += numel


@dataclass(frozen=True, slots=True)
class _Copy:
    """Carries elements of a part to their place."""

    output: Output
    part: Part
    start: int
    at: int
    count: int
    writer: CheckpointWriter

    def __call__(self, workspace: Workspace) -> list[Job]:
        """Read, cast if need be, write."""
        output, part = self.output, self.part
        first = nbytes_of(output.dtype, (self.at,))
        begin = nbytes_of(part.dtype, (part.start + self.start,))
        same = part.dtype == output.dtype
        # As they shall lie in the file, bytes go to the disk without the page cache.
        phase = self.writer.phase(output.name, first) if same else 0
        nbytes = nbytes_of(part.dtype, (self.count,))
        read = workspace.array("read", (nbytes,), np.uint8, phase=phase)
        part.model.read_into(part.name, read.data, start=begin)
        data = read.data if same else self._cast(read)
        self.writer.write_bytes(output.name, data, start=first)
        return []

    def _cast(self, read: np.ndarray) -> memoryview:
        stored = torch.from_numpy(read).view(torch_dtype(self.part.dtype))
        cast = stored.to(torch_dtype(self.output.dtype))
        if not bool(torch.isfinite(cast).all()):
            raise MixtureError(
                f"{self.part.model.name}: {self.part.name} holds entries that are no finite "
                f"{self.output.dtype}, the dense model's dtype"
            )
        return tensor_bytes(cast)


def _purpose(plan: StockPlan, models: Sequence[Checkpoint]) -> str | None:
    """What identifies the bytes; None where an input may be another a moment later."""
    stamps = [model.stamp() for model in models]
    if None in stamps:
        return None
    digest = hashlib.sha256()
    head = [installed_versions()["modelglue"], stamps, dict(plan.config)]
    digest.update(json.dumps(head, default=str).encode())
    for output in plan.outputs:
        parts = [(str(part.model.path), part.name, part.start) for part in output.parts]
        digest.update(repr((output.name, output.dtype, output.shape, parts)).encode())
        if output.values is not None:
            digest.update(tensor_bytes(output.values.contiguous()))
    return digest.hexdigest()


def _card(
    name: str,
    plan: StockPlan,
    dense: Checkpoint,
    experts: Mapping[str, Checkpoint],
    reasons: Mapping[str, str],
    conditions: Sequence[float],
) -> str:
    """A model card that says what came from where."""
    kind = plan.target.kind
    parts = f"{kind.top_k} of {len(experts)} feed-forward experts"
    notes = [
        f"Each token is answered by {parts} in each of {len(plan.target.mixed)} layers; "
        "everything else is the dense model's."
    ]
    if kind.shared_layers:
        notes.append(f"The bottom {kind.shared_layers} layers are the dense model's altogether.")
    if conditions:
        notes.append(f"Condition of the routers' weights: {shown(conditions)}.")
    listed = [
        f"- expert {i}, {label}: {reasons.get(label) or 'no reason was noted'}"
        for i, label in enumerate(experts)
    ]
    caveats = [f"- {caveat}." for caveat in plan.target.caveats]
    inputs = [("dense", dense), *experts.items()]
    return model_card(
        name,
        method=f"mixture {kind.short}",
        inputs=[
            (label, model.ref, model.known_fingerprint() or "not computed")
            for label, model in inputs
        ],
        parameters=kind.to_mapping(),
        notes="\n\n".join([*notes, "\n".join(listed), *(["\n".join(caveats)] if caveats else [])]),
    )
