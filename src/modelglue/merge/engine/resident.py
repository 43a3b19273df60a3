"""MergePlan → a live module, thousands of times: what search evaluates is never written to disk."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from modelglue.checkpoint.naming import is_buffer, place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.spec import torch_dtype
from modelglue.errors import NonFiniteTensor, NotMergeable, ShapeMismatch
from modelglue.merge.arrays import Array
from modelglue.merge.chunk import CHUNK
from modelglue.merge.engine.crew import Crew, Job
from modelglue.merge.engine.held import Held
from modelglue.merge.engine.parts import stored_parts
from modelglue.merge.engine.places import places_of
from modelglue.merge.engine.reading import TensorReader, Workspace
from modelglue.merge.engine.scope import measure_models
from modelglue.merge.engine.writing import encode
from modelglue.merge.method import METHODS
from modelglue.merge.plan.merge_plan import MergePlan, TensorPlan

_SMALL = 1 << 22
"""Entries of a model for which threads would take longer to start than to merge."""


class Resident:
    """The models of a plan held in memory, and a module to merge them into.

    Tensors are held as they are stored, where the module is, as many as `memory` allows; others are
    read from disk again for every merge. The arithmetic is that of `stream` and gives the same to
    the bit; a module on another device is merged there, one on several where each of its tensors
    stands (see `places`).

    Where a class of transformers computes with joined tensors, the checkpoint's own are merged,
    each into its part of them; see `parts`.

    Args:
        plan: names all models; its tensors are the module's.
        module: what is merged into.
        memory: bytes to hold on each device; None for half of what the machine or the module's
            device has in all, and on several devices half of what two such modules leave there.
        beside: one that holds the models already, for another module of theirs.

    Raises:
        NotMergeable: the module has other tensors, and they are not made of the plan's.
    """

    def __init__(
        self,
        plan: MergePlan,
        module: nn.Module,
        *,
        memory: int | None = None,
        beside: "Resident | None" = None,
    ) -> None:
        self.plan = plan
        self.module = module
        self._targets: dict[str, Tensor] = dict(module.state_dict(keep_vars=False))
        self._parameters = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        if self._strange(plan):
            self._take_apart(plan)
        self._places = places_of(self._targets, memory=memory)
        self._device = self._places.first
        self._workspaces = [Workspace(self._device)]
        self._elsewhere: dict[str | None, Workspace] = {}
        self._held: Held
        if beside is not None:
            self._held = beside._held
            return
        if strange := self._strange(plan):
            raise NotMergeable(
                f"{strange[0]}: the checkpoint has it, the loaded {type(module).__name__} does not"
            )
        checkpoints = [*plan.models, *([plan.base] if plan.reads_base and plan.base else [])]
        self._held = Held((*checkpoints, *plan.statistics), memory=memory, places=self._places)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are held, the module's aside."""
        return self._held.nbytes

    @property
    def state(self) -> dict[str, Tensor]:
        """What stands in the module now, by the names that the models have for it."""
        return dict(self._targets)

    def tensor(self, checkpoint: Checkpoint, name: str) -> Tensor | None:
        """A tensor of one of the models, by its name in `state`; None for none.

        It may lie on the module's device, or share its memory with what is held: only to be read.
        """
        if name not in checkpoint.tensors:
            return None
        held = self._held.array(checkpoint, name)
        if held is None:
            return checkpoint.read(name)
        return _tensor(held).view(checkpoint.tensors[name].shape)

    @torch.no_grad()
    def load(self, plan: MergePlan | None = None) -> None:
        """Write a merge into the module, in place.

        Args:
            plan: of any of the models, with any parameters, any tensor made of any others, as long
                as the result has the module's tensors; None for the one of the start. A model that
                is not held is read from disk.

        Raises:
            NonFiniteTensor: the result holds NaN or infinity; the module is then of no use until
                the next merge.
            NotMergeable: the module has other tensors than the plan makes.
        """
        asked = self.plan if plan is None else plan
        tensors = [tensor for tensor in asked.tensors if tensor.name in self._targets]
        copies = self._fit(asked, tensors)
        threads = self._threads(tensors)
        measured = measure_models(
            tensors,
            lambda tensor, workspace, offset: TensorReader(
                asked, tensor, workspace, offset=offset, held=self._held
            ),
            threads=threads,
            device=self._device,
        )
        work = _Work(asked, self._targets, self._held, measured, self._at)
        work.run([work.start(tensor) for tensor in tensors], self._own(threads))
        for embedding, head in copies:
            self._targets[head].copy_(self._targets[embedding])
        work.refuse_nonfinite(tensors)

    def _threads(self, tensors: Sequence[TensorPlan]) -> int:
        entries = sum(tensor.numel for tensor in tensors)
        return 1 if self._device or entries < _SMALL else torch.get_num_threads()

    def _own(self, count: int) -> list[Workspace]:
        """Buffers for so many threads, the same ones each time."""
        while len(self._workspaces) < count:
            self._workspaces.append(Workspace(self._device))
        return self._workspaces[:count]

    def _at(self, tensor: TensorPlan) -> Workspace | None:
        """The buffers for a tensor that is merged elsewhere than on the first device."""
        device = self._places.merges(tensor)
        if not self._places.others or device == self._places.first:
            return None
        return self._elsewhere.setdefault(device, Workspace(device))

    def _take_apart(self, plan: MergePlan) -> None:
        """Put the parts of joined tensors in their place, by the names that the plan has."""
        names = {tensor.name for tensor in plan.tensors}
        parts = stored_parts(self.module, self._targets, names)
        self._targets = {name: part for each in parts.values() for name, part in each.items()}
        self._parameters = [name for joined in self._parameters for name in parts[joined]]

    def _strange(self, plan: MergePlan) -> list[str]:
        """What the plan makes and the module does not have."""
        names = (tensor.name for tensor in plan.tensors)
        return [name for name in names if name not in self._targets and not is_buffer(name)]

    def _fit(self, plan: MergePlan, tensors: Sequence[TensorPlan]) -> list[tuple[str, str]]:
        """Tie or untie the head as the plan has it, and see that it makes the whole module.

        Returns:
            (embedding, head): what the plan ties and the module has twice.
        """
        if strange := self._strange(plan):
            raise NotMergeable(f"{strange[0]}: the {type(self.module).__name__} lacks it")
        made = {tensor.name: tensor for tensor in tensors}
        for name, tensor in made.items():
            if tuple(self._targets[name].shape) != tensor.shape:
                raise ShapeMismatch(
                    f"{name}: the merge has {list(tensor.shape)}, the module "
                    f"{list(self._targets[name].shape)}. Only models of one shape can be merged."
                )
        copies = []
        for name in self._parameters:
            if place(name).role == "head":
                copies += self._tied(name, made)
            elif name not in made:
                raise NotMergeable(f"{name}: the module has it, the merge does not make it")
        return copies

    def _tied(self, head: str, made: dict[str, TensorPlan]) -> list[tuple[str, str]]:
        target = self._targets[head]
        alike = [name for name in made if name != head and _same(self._targets[name], target)]
        if head in made:
            if alike:
                self._untie(head)
            return []
        if alike:
            return []
        embeddings = [
            name
            for name in made
            if place(name).role == "embedding" and self._targets[name].shape == target.shape
        ]
        if not embeddings:
            raise NotMergeable(f"{head}: the module has it, the merge does not make it")
        return [(embeddings[0], head)]

    def _untie(self, head: str) -> None:
        module, _, name = head.rpartition(".")
        own = nn.Parameter(self._targets[head].clone(), requires_grad=False)
        setattr(self.module.get_submodule(module), name, own)
        self._targets[head] = own.detach()


class _Work:
    """The jobs of one merge into a module."""

    def __init__(
        self,
        plan: MergePlan,
        targets: dict[str, Tensor],
        held: Held,
        measured: dict[str, tuple[object, int]],
        elsewhere: Callable[[TensorPlan], Workspace | None],
    ) -> None:
        self._plan, self._targets, self._held = plan, targets, held
        self._measured, self._elsewhere = measured, elsewhere
        self._bad: dict[str, list[Tensor | int]] = {}
        self._counting = threading.Lock()

    def run(self, jobs: list[Job], workspaces: list[Workspace]) -> None:
        """Do all of them: here, or in as many threads as there are workspaces."""
        if len(workspaces) > 1:
            Crew(len(workspaces), iter(workspaces).__next__).run(jobs)
            return
        waiting = jobs[::-1]
        while waiting:
            waiting += reversed(waiting.pop().run(workspaces[0]))

    def start(self, tensor: TensorPlan) -> Job:
        """One tensor: what must be measured first, then all chunks."""

        def run(workspace: Workspace) -> list[Job]:
            if tensor.copied:
                source = tensor.sources[0]
                read = self._plan.checkpoint(source).read(source.name)
                self._targets[tensor.name].copy_(read)
                return []
            workspace = self._elsewhere(tensor) or workspace
            found, offset = self._measured.get(tensor.name, (None, 0))
            reader = self._reader(tensor, workspace, offset)
            if tensor.name not in self._measured:
                found = METHODS[tensor.method].first_pass(reader, tensor.parameters)
            if tensor.numel > CHUNK:
                return [self._chunk(tensor, found, offset, chunk) for chunk in reader.ranges]
            for chunk in reader.ranges:
                self._merge(reader, tensor, found, chunk, workspace)
            return []

        return Job(run, tensor.numel)

    def refuse_nonfinite(self, tensors: Sequence[TensorPlan]) -> None:
        """Tell of the first tensor, in the order of the plan, whose merge is not finite."""
        for tensor in tensors:
            counts = self._bad.get(tensor.name, ())
            if bad := int(sum(counts)):
                raise NonFiniteTensor(
                    f"{tensor.name}: {bad} entries of the merge are NaN or infinite"
                )

    def _reader(self, tensor: TensorPlan, workspace: Workspace, offset: int) -> TensorReader:
        return TensorReader(self._plan, tensor, workspace, offset=offset, held=self._held)

    def _chunk(self, tensor: TensorPlan, found: object, offset: int, chunk: tuple[int, int]) -> Job:
        def run(workspace: Workspace) -> list[Job]:
            workspace = self._elsewhere(tensor) or workspace
            self._merge(self._reader(tensor, workspace, offset), tensor, found, chunk, workspace)
            return []

        return Job(run, 0)

    def _merge(
        self,
        reader: TensorReader,
        tensor: TensorPlan,
        found: object,
        chunk: tuple[int, int],
        workspace: Workspace,
    ) -> None:
        target = self._targets[tensor.name].view(-1)[slice(*chunk)]
        bad: Tensor | int
        if reader.exact:
            result = torch.as_tensor(reader.stored(*chunk))
            bad = (~result.isfinite()).sum()
        else:
            merged = METHODS[tensor.method].merge(reader.read(*chunk), found, tensor.parameters)
            result, bad = _encoded(merged, tensor.dtype, workspace)
        target.copy_(result)
        if isinstance(bad, Tensor) or bad:
            with self._counting:
                self._bad.setdefault(tensor.name, []).append(bad)


def _encoded(merged: Array, dtype: str, workspace: Workspace) -> tuple[Tensor, Tensor | int]:
    """[k] in the dtype that would be written, and how many entries are not finite."""
    if isinstance(merged, np.ndarray):
        stored, bad = encode(merged, dtype, workspace)
        return _tensor(stored), bad
    numbers = merged.view(-1).to(torch_dtype(dtype))
    # Counted where it lies: to ask for the number would wait for the device at every chunk.
    return numbers, (~numbers.isfinite()).sum()


def _tensor(array: Array) -> Tensor:
    """A torch tensor over the same memory; uint16 are bfloat16's bits."""
    tensor = torch.as_tensor(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one."""
    return a.device == b.device and a.data_ptr() == b.data_ptr() and a.shape == b.shape
