"""Which tensor is merged on which device, where a module stands on several.

A tensor is merged where its parameter stands, and the models' own tensors are held there, so that
nothing crosses from one device to another; each device holds what its own memory allows. Only a
method that measures the whole model works on one device alone, the first: the numbers that it
measures must meet. What it merges is copied to where it belongs, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelglue.machine import memory_of
from modelglue.merge.method import METHODS
from modelglue.merge.plan.merge_plan import TensorPlan

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where the tensors of a module stand.

    Attributes:
        first: the device of the first of them; None for the CPU, which computes with numpy.
        others: tensor name → its device, where there are several; a tensor that is not among them
            (of another module, say) is dealt with on the first.
        room: device → bytes of weights to hold there, where there are several.
    """

    first: str | None
    others: Mapping[str, str] = field(default_factory=dict)
    room: Mapping[str | None, int] = field(default_factory=dict)

    def of(self, name: str) -> str | None:
        """Where a tensor of that name is held, and merged if nothing speaks against it."""
        return self.others.get(name, self.first)

    def merges(self, tensor: TensorPlan) -> str | None:
        """Where a tensor is merged."""
        if not tensor.copied and METHODS[tensor.method].reach(tensor.parameters) == "model":
            return self.first
        return self.of(tensor.name)


def places_of(targets: Mapping[str, Tensor], *, memory: int | None = None) -> Places:
    """The places of a module's tensors.

    Args:
        targets: the tensors.
        memory: bytes of weights to hold on each device; None for half of what two modules like this
            one leave there. (A single model is scored in a module of its own, beside this one.)
    """
    stand = {name: tensor.device for name, tensor in targets.items()}
    devices = list(dict.fromkeys(stand.values()))
    if len(devices) == 1:
        return Places(None if devices[0].type == "cpu" else str(devices[0]))
    # Torch on all of them, a CPU among them too: what is measured on one is used on others.
    others = {name: str(device) for name, device in stand.items()}
    taken = dict.fromkeys(others.values(), 0)
    for tensor in targets.values():  # a tied head counts twice, which leaves a little more
        taken[str(tensor.device)] += tensor.numel() * tensor.itemsize
    room: dict[str | None, int] = {
        device: max(0, (memory_of(device) - 2 * used) // 2) if memory is None else memory
        for device, used in taken.items()
    }
    return Places(str(devices[0]), others, room)
