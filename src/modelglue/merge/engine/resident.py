"""MergePlan → a live module, thousands of times: what search evaluates is never written to disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.spec import dtype_name
from modelglue.errors import MergeError, NonFiniteTensor, NotMergeable
from modelglue.merge.arrays import Array, namespace
from modelglue.merge.engine.reading import TensorReader, Workspace
from modelglue.merge.engine.scope import measure_models
from modelglue.merge.engine.writing import encode
from modelglue.merge.kernels.random import tensor_key
from modelglue.merge.memory import InMemory, as_array
from modelglue.merge.method import METHODS
from modelglue.merge.plan.merge_plan import MergePlan, Source, TensorPlan


@dataclass(frozen=True)
class _Held:
    """One tensor of every model, in memory.

    Attributes:
        models: [n, numel].
        base: [numel] or None.
        statistics: one a model, or none.
    """

    models: Array
    base: Array | None
    statistics: tuple[Array, ...] = ()

    def whole(self, tensor: TensorPlan, kept: Sequence[int], offset: int) -> InMemory:
        """What a method sees of the models `kept`."""
        everyone = len(kept) == len(self.models)
        return InMemory(
            self.models if everyone else self.models[list(kept)],
            self.base,
            tensor.shape,
            key=tensor_key(int(tensor.parameters.get("seed") or 0), tensor.name),
            statistics=[self.statistics[i] for i in kept] if self.statistics else (),
            offset=offset,
            rows=METHODS[tensor.method].rows(tensor.parameters),
        )


class Resident:
    """The plan's models held in memory, in their own dtypes, and a module to merge them into.

    Where a class of transformers stores other names than it computes with (fused experts, say),
    the checkpoints' tensors have no place in the module; then `load` gives each checkpoint as a
    module, and their states are merged instead, which for an elementwise method is the same.

    The arithmetic is that of `stream` and gives the same to the bit; a module on another device is
    merged there.

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
        device = next(iter(self._targets.values())).device
        self._device = None if device.type == "cpu" else str(device)
        lacking = [tensor.name for tensor in plan.tensors if tensor.name not in self._targets]
        if not lacking:
            self._tensors = plan.tensors
            self._held = {tensor.name: self._read(tensor) for tensor in plan.tensors}
        elif load is not None:
            self._tensors = _module_tensors(plan, self._targets)
            self._held = self._states(load)
        else:
            raise NotMergeable(
                f"{lacking[0]}: the checkpoint has it, the loaded {type(module).__name__} does not"
            )

    @torch.no_grad()
    def load(self, weights: Sequence[float | None] | None = None) -> None:
        """Write the merge into the module, in place: the plan's, or one with these weights.

        Args:
            weights: one a model, in the plan's order; None leaves a model out, as if the plan did
                not name it. A method without weights merges those that are not left out.

        Raises:
            MergeError: their number is wrong, or the method cannot use them (a sum of 0, say).
            NonFiniteTensor: the result holds NaN or infinity.
        """
        kept, tensors = self._candidate(weights)
        measured = measure_models(
            tensors, lambda tensor, _, offset: self._whole(tensor, kept, offset)
        )
        workspace = Workspace()
        for tensor in tensors:
            target = self._targets[tensor.name]
            if tensor.copied:
                target.copy_(
                    torch.as_tensor(self._held[tensor.name].models[kept[0]]).view_as(target)
                )
                continue
            method = METHODS[tensor.method]
            found, offset = measured.get(tensor.name, (None, 0))
            whole = self._whole(tensor, kept, offset)
            if tensor.name not in measured:
                found = method.first_pass(whole, tensor.parameters)
            flat = target.view(-1)
            for start, stop in whole.ranges:
                merged = method.merge(whole.read(start, stop), found, tensor.parameters)
                _store(merged, flat[start:stop], tensor, workspace)

    def _candidate(
        self, weights: Sequence[float | None] | None
    ) -> tuple[list[int], Sequence[TensorPlan]]:
        """Which models, and the tensors' plans."""
        if weights is None:
            return list(range(len(self._tensors[0].sources))), self._tensors
        if len(weights) != len(self._tensors[0].sources):
            n = len(self._tensors[0].sources)
            raise MergeError(f"{len(weights)} weights for {n} models")
        kept = [i for i, weight in enumerate(weights) if weight is not None]
        return kept, [_only(tensor, kept, weights) for tensor in self._tensors]

    def tensors(self) -> Mapping[str, tuple[Tensor, list[Tensor]]]:
        """Tensor name → (what stands in the module now, the same tensor of each model)."""
        return {
            tensor.name: (
                self._targets[tensor.name],
                [
                    _tensor(model).view(self._targets[tensor.name].shape)
                    for model in self._held[tensor.name].models
                ],
            )
            for tensor in self._tensors
        }

    def _whole(self, tensor: TensorPlan, kept: Sequence[int], offset: int) -> InMemory:
        return self._held[tensor.name].whole(tensor, kept, offset)

    def _read(self, tensor: TensorPlan) -> _Held:
        if tensor.copied:
            read = [self.plan.checkpoint(s).read(s.name).reshape(1, -1) for s in tensor.sources]
            return _Held(torch.cat(read), None)
        # A workspace of its own: what it reads into is what is kept.
        reader = TensorReader(self.plan, tensor, Workspace())
        models, base = reader.arrays()
        statistics = tuple(rows.read(0, rows.shape[0]) for rows in reader.statistics)
        if self._device is None:
            return _Held(models, base, statistics)
        return _Held(
            _tensor(models).to(self._device),
            None if base is None else _tensor(base).to(self._device),
            tuple(torch.as_tensor(array).to(self._device) for array in statistics),
        )

    def _states(self, load: Callable[[Checkpoint], nn.Module]) -> dict[str, _Held]:
        states = [_state(load(checkpoint), self._targets) for checkpoint in self.plan.models]
        base = None
        if self.plan.reads_base and self.plan.base is not None:
            base = _state(load(self.plan.base), self._targets)
        return {
            tensor.name: _Held(
                self._stack([state[tensor.name] for state in states]),
                None if base is None else self._stack([base[tensor.name]])[0],
            )
            for tensor in self._tensors
        }

    def _stack(self, tensors: Sequence[Tensor]) -> Array:
        flat = [tensor.detach().reshape(-1) for tensor in tensors]
        if self._device is not None:
            return torch.stack(flat)
        arrays = [as_array(tensor) for tensor in flat]
        return namespace(arrays[0]).stack(arrays)


def _only(tensor: TensorPlan, kept: Sequence[int], weights: Sequence[float | None]) -> TensorPlan:
    """The tensor's plan for some of the models, with other weights."""
    method = METHODS[tensor.method]
    values: dict[str, Any] = dict(tensor.parameters)
    for parameter in method.parameters:
        if parameter.per == "model" and len(values[parameter.name]) == len(weights):
            values[parameter.name] = tuple(values[parameter.name][i] for i in kept)
    if method.parameter("weight") is not None:
        values["weight"] = tuple(float(weights[i] or 0.0) for i in kept)
    if trouble := method.check(values):
        raise MergeError(f"parameters: {trouble}")
    sources = tuple(tensor.sources[i] for i in kept)
    return replace(tensor, sources=sources, parameters=values)


def _store(merged: Array, target: Tensor, tensor: TensorPlan, workspace: Workspace) -> None:
    if isinstance(merged, np.ndarray):
        result, bad = encode(merged, tensor.dtype, workspace)
        target.copy_(_tensor(result))
    else:
        target.copy_(merged.view(-1))
        bad = int((~target.isfinite()).sum())
    if bad:
        raise NonFiniteTensor(f"{tensor.name}: {bad} entries of the merge are NaN or infinite")


def _tensor(array: Array) -> Tensor:
    """A torch tensor over the same memory; uint16 are bfloat16's bits."""
    tensor = torch.as_tensor(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def _module_tensors(plan: MergePlan, state: Mapping[str, Tensor]) -> tuple[TensorPlan, ...]:
    values = plan.tensors[0].parameters
    base = plan.reads_base
    return tuple(
        TensorPlan(
            name,
            dtype_name(tensor.dtype),
            tuple(tensor.shape),
            plan.method,
            tuple(Source(i, name) for i in range(len(plan.models))),
            Source(None, name) if base else None,
            values,
        )
        for name, tensor in state.items()
        if tensor.is_floating_point()
    )


def _state(loaded: nn.Module, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = loaded.state_dict()
    if state.keys() != targets.keys():
        raise NotMergeable("two checkpoints of one family load into modules of different tensors")
    return state
