"""MergePlan → a live module, thousands of times: what search evaluates is never written to disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.spec import dtype_name
from modelglue.errors import NotMergeable
from modelglue.merge.chunks import merge_rows, row_chunks
from modelglue.merge.plan import MergePlan, TensorPlan


class Resident:
    """The plan's models held in memory, in their own dtypes, and a module to merge them into.

    Where a class of transformers stores other names than it computes with (fused experts, say),
    the checkpoints' tensors have no place in the module; then `load` gives each checkpoint as a
    module, and their states are merged instead, which for an elementwise method is the same.

    Raises:
        NotMergeable: names differ and `load` was not given.
    """

    def __init__(
        self,
        plan: MergePlan,
        module: nn.Module,
        *,
        load: Callable[[Checkpoint], nn.Module] | None = None,
    ) -> None:
        self.plan = plan
        self.module = module
        self._targets = module.state_dict(keep_vars=False)
        checkpoints = [*plan.models, *([plan.base] if plan.base and plan.reads_base else [])]
        lacking = [tensor.name for tensor in plan.tensors if tensor.name not in self._targets]
        if not lacking:
            self._tensors = plan.tensors
            self._states = [_read_all(plan, i, c) for i, c in enumerate(checkpoints)]
        elif load is not None:
            self._tensors = _module_tensors(plan, self._targets)
            self._states = [_state(load(checkpoint), self._targets) for checkpoint in checkpoints]
        else:
            raise NotMergeable(
                f"{lacking[0]}: the checkpoint has it, the loaded {type(module).__name__} does not"
            )

    @torch.no_grad()
    def load(self, weights: Sequence[float]) -> None:
        """Write the merge with these per-model weights into the module, in place."""
        parameters = self.plan.checked_parameters(weights)
        for planned in self._tensors:
            tensor = replace(planned, parameters=parameters)
            states = [state[tensor.name] for state in self._states]

            def read(model: int | None, rows: slice, states: list[Tensor] = states) -> Tensor:
                whole = states[-1 if model is None else model]
                return whole[rows] if whole.dim() else whole

            target = self._targets[tensor.name]
            for rows in row_chunks(tensor):
                merged = merge_rows(self.plan, tensor, rows, read)
                (target[rows] if target.dim() else target).copy_(merged)

    def tensors(self) -> Mapping[str, tuple[Tensor, list[Tensor]]]:
        """Tensor name → (what stands in the module now, the same tensor of each model)."""
        return {
            tensor.name: (
                self._targets[tensor.name],
                [state[tensor.name] for state in self._states[: len(self.plan.models)]],
            )
            for tensor in self._tensors
        }


def _read_all(plan: MergePlan, index: int, checkpoint: Checkpoint) -> dict[str, Tensor]:
    if index < len(plan.models):
        return {t.name: checkpoint.read(t.sources[index]) for t in plan.tensors}
    return {t.name: checkpoint.read(t.base or t.name) for t in plan.tensors}


def _module_tensors(plan: MergePlan, state: Mapping[str, Tensor]) -> tuple[TensorPlan, ...]:
    return tuple(
        TensorPlan(
            name,
            dtype_name(tensor.dtype),
            tuple(tensor.shape),
            (name,) * len(plan.models),
            name,
            {},
        )
        for name, tensor in state.items()
        if tensor.is_floating_point()
    )


def _state(loaded: nn.Module, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = loaded.state_dict()
    if state.keys() != targets.keys():
        raise NotMergeable("two checkpoints of one family load into modules of different tensors")
    return state
