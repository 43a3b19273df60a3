"""Measuring a whole model at once: tensors measured alike are one whole."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from modelglue.merge.arrays import namespace
from modelglue.merge.chunk import Chunk, Rows, Whole
from modelglue.merge.engine.crew import Crew, Job
from modelglue.merge.engine.reading import Workspace
from modelglue.merge.method import METHODS
from modelglue.merge.plan.merge_plan import TensorPlan

T = TypeVar("T")


class Tensor(Whole, Protocol):
    """One tensor of every model as a whole whose chunks can be read in any order."""

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The chunks, as flat ranges."""
        ...

    def read(self, start: int, stop: int) -> Chunk:
        """The entries from `start` to before `stop`."""
        ...


Open = Callable[[TensorPlan, Workspace, int], Tensor]
"""(tensor, a thread's buffers, entries of the tensors before) → what can be read of it."""


class Model:
    """Many tensors as one whole, measured by several threads; see `chunk.Whole`."""

    shape: tuple[int, ...] = ()
    statistics: Sequence[Rows] = ()

    def __init__(
        self, tensors: Sequence[TensorPlan], open_tensor: Open, *, threads: int, device: str | None
    ) -> None:
        self._tensors, self._open = tensors, open_tensor
        self._threads, self._device = threads, device
        self._workspace = Workspace(device)
        self.n, self.has_base = len(tensors[0].sources), tensors[0].base is not None
        self.offsets: list[int] = []
        self.numel = 0
        for tensor in tensors:
            self.offsets.append(self.numel)
            self.numel += tensor.numel
        self._chunks = [
            (index, start, stop)
            for index in range(len(tensors))
            for start, stop in self._tensor(index, self._workspace).ranges
        ]

    def map(self, function: Callable[[Chunk], T]) -> list[T]:
        """Apply `function` to every chunk of every tensor; the results in their order."""
        results: dict[int, T] = {}

        def job(number: int) -> Job:
            index, start, stop = self._chunks[number]

            def run(workspace: Workspace) -> list[Job]:
                results[number] = function(self._tensor(index, workspace).read(start, stop))
                return []

            return Job(run, 0)

        jobs = [job(number) for number in range(len(self._chunks))]
        Crew(self._threads, lambda: Workspace(self._device)).run(jobs)
        return [results[number] for number in range(len(self._chunks))]

    def walk(self) -> Iterator[Chunk]:
        """Every chunk of every tensor, in order."""
        return map(self.chunk, range(len(self._chunks)))

    def chunk(self, index: int) -> Chunk:
        """One chunk again."""
        tensor, start, stop = self._chunks[index]
        return self._tensor(tensor, self._workspace).read(start, stop)

    def sample(self, count: int) -> Chunk:
        """A share of every tensor's entries, as numbers."""
        parts = []
        for index, tensor in enumerate(self._tensors):
            share = max(1, count * tensor.numel // max(self.numel, 1))
            part = self._tensor(index, self._workspace).sample(share)
            # Numbers of their own: the next part is read into the same buffers.
            base = None if part.base is None else part.fp32_base + 0
            parts.append((part.fp32 + 0, base))
        xp = namespace(parts[0][0])
        bases = [base for _, base in parts if base is not None]
        models = xp.concatenate([models for models, _ in parts], 1)
        return Chunk(models, xp.concatenate(bases) if bases else None, start=0, width=1)

    def _tensor(self, index: int, workspace: Workspace) -> Tensor:
        return self._open(self._tensors[index], workspace, self.offsets[index])


def measure_models(
    tensors: Sequence[TensorPlan],
    open_tensor: Open,
    *,
    wanted: Callable[[TensorPlan], bool] = lambda tensor: True,
    threads: int = 1,
    device: str | None = None,
) -> dict[str, tuple[Any, int]]:
    """What methods that look at the whole model measured.

    Args:
        tensors: of the whole plan.
        open_tensor: gives one of them as chunks.
        wanted: which of them are still to be merged; a group without any is not measured.
        threads: that measure.
        device: for their buffers.

    Returns:
        Tensor name → (what `measure` gave, the tensor's offset in what was measured).
    """
    groups: dict[tuple[str, str, int], list[TensorPlan]] = {}
    for tensor in tensors:
        method = METHODS[tensor.method]
        if tensor.copied or method.reach(tensor.parameters) != "model":
            continue
        read = sorted(method.read_first(tensor.parameters).items())
        key = tensor.method, repr(read), len(tensor.sources)
        groups.setdefault(key, []).append(tensor)
    found: dict[str, tuple[Any, int]] = {}
    for (name, _, _), group in groups.items():
        method = METHODS[name]
        if not any(map(wanted, group)):
            continue
        whole = Model(group, open_tensor, threads=threads, device=device)
        measured = method.first_pass(whole, group[0].parameters)
        for tensor, offset in zip(group, whole.offsets, strict=True):
            found[tensor.name] = measured, offset
    return found
