"""MergePlan → a checkpoint on disk, in bounded memory.

A few threads take chunk after chunk: each reads the same range of every model into buffers of its
own, merges it and writes the result to its place, so that reading, arithmetic and writing overlap.
Nothing is held but the chunks under way. A method that measures first does so tensor by tensor, or
before everything else where it measures the whole model.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from modelglue.checkpoint.card import installed_versions
from modelglue.checkpoint.spec import nbytes_of
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.errors import NonFiniteTensor
from modelglue.merge.chunk import CHUNK
from modelglue.merge.engine.ahead import read_ahead
from modelglue.merge.engine.blame import blame
from modelglue.merge.engine.crew import Crew, Job
from modelglue.merge.engine.provenance import provenance
from modelglue.merge.engine.reading import TensorReader, Workspace
from modelglue.merge.engine.scope import measure_models
from modelglue.merge.engine.writing import encode
from modelglue.merge.method import METHODS
from modelglue.merge.plan.merge_plan import MergePlan, TensorPlan
from modelglue.merge.vocabulary.rows import RowUnion

Progress = Callable[[int, int], None]
"""(elements written, elements to write)"""

_COPY = 4 << 20
_TINY = 1 << 12
_TOGETHER = 64


@dataclass(frozen=True)
class Merged:
    """What `execute` made.

    Attributes:
        path: the checkpoint.
        resumed: tensors that an earlier, interrupted run had finished.
        nonfinite: tensor name → entries that are NaN or infinite, where that was allowed.
    """

    path: Path
    resumed: int = 0
    nonfinite: Mapping[str, int] = field(default_factory=dict)


def execute(
    plan: MergePlan,
    out: Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    allow_nonfinite: bool = False,
    card: str | None = None,
    progress: Progress | None = None,
) -> Merged:
    """Carry the plan out and write a Hugging Face checkpoint that stands completely or not at all.

    Killed or interrupted, the same call goes on at the tensors that were not finished.

    Args:
        plan: what to do.
        out: the folder to make; it must not be there.
        threads: how many chunks are under way at a time; by default one a core.
        device: a torch device for the arithmetic; by default compiled loops on the CPU.
        allow_nonfinite: write NaN and infinity, and say where, instead of refusing.
        card: the model card; by default one with the plan's full provenance.
        progress: called now and then, from the thread that called `execute`.

    Raises:
        OutputExists: `out` is there.
        OutOfSpace: the disk cannot hold the result; nothing is written.
        NonFiniteTensor: an input or the result holds NaN or infinity; nothing is left behind.
    """
    threads = threads or len(os.sched_getaffinity(0))
    nonfinite: dict[str, int] = {}
    with CheckpointWriter(out, plan.layout, purpose=purpose(plan, device)) as writer:
        todo = [tensor for tensor in plan.tensors if tensor.name not in writer.finished]
        measured = measure_models(
            plan.tensors,
            lambda tensor, buffers, offset: TensorReader(plan, tensor, buffers, offset=offset),
            wanted=lambda tensor: tensor.name not in writer.finished,
            threads=threads,
            device=device,
        )
        work = _Work(plan, writer, measured, nonfinite if allow_nonfinite else None)
        total = sum(tensor.numel for tensor in plan.tensors)
        before = total - sum(tensor.numel for tensor in todo)
        crew = Crew(threads, lambda: Workspace(device))
        crew.run(
            work.jobs(todo),
            on_done=None if progress is None else lambda done: progress(before + done, total),
        )
        nonfinite = {name: nonfinite[name] for name in plan.layout if name in nonfinite}
        writer.commit(
            config=plan.output_config,
            files_from=None if plan.tokenizer is not None else plan.template,
            extra=None if plan.tokenizer is None else plan.tokenizer.files(),
            card=card if card is not None else provenance(plan, out.name, nonfinite),
        )
        return Merged(out, len(writer.finished), nonfinite)


def purpose(plan: MergePlan, device: str | None) -> str | None:
    """What identifies the weights: plan, device, and all inputs by place, size, time and inode.

    None where an input cannot be told from another that may take its place a moment later. Whether
    NaN is allowed does not matter: tensors that hold any never count as finished.
    """
    inputs = [*plan.models, *([plan.base] if plan.base else []), *plan.statistics]
    stamps = [model.stamp() for model in inputs]
    if None in stamps:
        return None
    digest = hashlib.sha256()
    head = [installed_versions()["modelglue"], stamps, device, dict(plan.output_config)]
    digest.update(json.dumps(head, default=str).encode())
    said: dict[int, str] = {}  # tensors share their parameters
    for tensor in plan.tensors:
        parameters = tensor.parameters
        if id(parameters) not in said:
            said[id(parameters)] = repr(sorted(parameters.items()))
        parts = (tensor.name, tensor.method, tensor.sources, tensor.base, tensor.dtype)
        digest.update(repr((*parts, tensor.shape, tensor.statistics)).encode())
        digest.update(said[id(parameters)].encode())
        if tensor.union is not None:
            for indices in _rows(tensor.union):
                digest.update(b"none" if indices is None else indices.tobytes())
    return digest.hexdigest()


def _rows(union: RowUnion) -> list[np.ndarray | None]:
    loans = union.loans
    filled = np.array([union.filled])
    return [*union.models, union.base, loans.rows, *loans.models, loans.base, filled]


@dataclass
class _Work:
    """The jobs of one merge."""

    plan: MergePlan
    writer: CheckpointWriter
    measured: Mapping[str, tuple[object, int]]
    nonfinite: dict[str, int] | None
    counting: threading.Lock = field(default_factory=threading.Lock)
    tiny: threading.Lock = field(default_factory=threading.Lock)
    """Held for what is mostly Python: two threads at it would only wait for each other's GIL."""

    def jobs(self, tensors: list[TensorPlan]) -> list[Job]:
        """One a tensor, or a run of tiny ones.

        Where the method measures, the largest come first, so that none ends alone.
        """
        if any(METHODS[tensor.method].reach(tensor.parameters) != "chunk" for tensor in tensors):
            tensors = sorted(tensors, key=lambda tensor: -tensor.numel)
        found: list[Job] = []
        for tiny, run in groupby(tensors, lambda tensor: tensor.numel <= min(_TINY, CHUNK)):
            if tiny:
                while some := list(islice(run, _TOGETHER)):
                    found.append(self._tiny(some))
            else:
                found += [self._one(tensor) for tensor in run]
        return found

    def _tiny(self, tensors: Sequence[TensorPlan]) -> Job:
        def start(workspace: Workspace) -> list[Job]:
            with self.tiny:
                workspace.ahead = read_ahead(self.plan, tensors)
                for tensor in tensors:
                    self._begin(tensor, workspace)
                workspace.ahead = {}
            return []

        return Job(start, sum(tensor.numel for tensor in tensors))

    def _one(self, tensor: TensorPlan) -> Job:
        in_jobs = tensor.numel > CHUNK and not tensor.copied
        return Job(lambda workspace: self._begin(tensor, workspace), 0 if in_jobs else tensor.numel)

    def _begin(self, tensor: TensorPlan, workspace: Workspace) -> list[Job]:
        """The tensor's first pass, and of no more than a chunk the second; else jobs for that."""
        if tensor.copied:
            self._copy(tensor)
            return []
        measured, offset = self.measured.get(tensor.name, (None, 0))
        reader = TensorReader(self.plan, tensor, workspace, offset=offset)
        if tensor.name not in self.measured:
            measured = METHODS[tensor.method].first_pass(reader, tensor.parameters)
        if tensor.numel > CHUNK:
            return [self._chunk(tensor, measured, offset, chunk) for chunk in reader.ranges]
        for chunk in reader.ranges:
            self._merge(reader, tensor, measured, chunk, workspace)
        return []

    def _chunk(
        self, tensor: TensorPlan, measured: object, offset: int, chunk: tuple[int, int]
    ) -> Job:
        def merge(workspace: Workspace) -> list[Job]:
            reader = TensorReader(self.plan, tensor, workspace, offset=offset)
            self._merge(reader, tensor, measured, chunk, workspace)
            return []

        return Job(merge, chunk[1] - chunk[0])

    def _merge(
        self,
        reader: TensorReader,
        tensor: TensorPlan,
        measured: object,
        chunk: tuple[int, int],
        workspace: Workspace,
    ) -> None:
        method = METHODS[tensor.method]
        start = nbytes_of(tensor.dtype, (chunk[0],))
        phase = self.writer.phase(tensor.name, start)
        if reader.exact:
            result = reader.stored(*chunk, phase=phase)
            bad = int(np.count_nonzero(~np.isfinite(result)))
        else:
            merged = method.merge(reader.read(*chunk), measured, tensor.parameters)
            result, bad = encode(merged, tensor.dtype, workspace, phase=phase)
        if bad:
            if self.nonfinite is None:
                raise NonFiniteTensor(blame(self.plan, tensor, chunk, workspace))
            # Made again where a killed merge goes on, which would not know the count.
            self.writer.again(tensor.name)
            with self.counting:
                self.nonfinite[tensor.name] = self.nonfinite.get(tensor.name, 0) + bad
        self.writer.write_bytes(tensor.name, result.data, start=start)

    def _copy(self, tensor: TensorPlan) -> None:
        """What is no weight (a mask, position ids) is the first source's."""
        source = tensor.sources[0]
        start = 0
        for part in self.plan.checkpoint(source).chunks(source.name, size=_COPY):
            self.writer.write_bytes(tensor.name, part, start=start)
            start += len(part)
