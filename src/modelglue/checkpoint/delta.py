"""What an adapter does to one tensor of its base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelglue.checkpoint.reader import Checkpoint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Delta:
    """What is added to one tensor: scale·BA, with A [rank, inputs] and B [outputs, rank].

    Attributes:
        a: the name of A in the adapter's file; None for a bias, whose delta is scale·B.
        b: the name of B.
        transposed: the tensor is stored [inputs, outputs]: embeddings, and Conv1D of GPT-2.
        magnitude: the name of DoRA's magnitudes [outputs], or None.
    """

    a: str | None
    b: str
    scale: float
    transposed: bool = False
    magnitude: str | None = None

    def shape(self, weights: Checkpoint) -> tuple[int, ...]:
        """The shape of the tensor that this belongs to."""
        outputs = weights.tensors[self.b].shape[0]
        if self.a is None:
            return (outputs,)
        inputs = weights.tensors[self.a].shape[1]
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    def add_to(self, weight: torch.Tensor, rows: slice, weights: Checkpoint) -> torch.Tensor:
        """The rows `rows` of the changed tensor, of which `weight` are the base's."""
        dtype = weight.dtype
        if self.a is None:
            return weight + self.scale * weights.read(self.b, rows).to(dtype)
        if self.transposed:
            a = weights.read(self.a).to(dtype)[:, rows]
            product = a.T @ weights.read(self.b).to(dtype).T
        else:
            product = weights.read(self.b, rows).to(dtype) @ weights.read(self.a).to(dtype)
        changed = weight + self.scale * product
        if self.magnitude is None:
            return changed
        magnitude = weights.read(self.magnitude, rows).to(dtype)
        norms: torch.Tensor = changed.square().sum(dim=1).sqrt()
        return changed * (magnitude / norms)[:, None]


@dataclass(frozen=True)
class Tokens:
    """Rows of an embedding that were trained alone; they take the place of the base's.

    Attributes:
        indices: the rows.
        tensor: the name of their values [rows, hidden] in the adapter's file.
    """

    indices: tuple[int, ...]
    tensor: str

    def put_into(self, weight: torch.Tensor, rows: slice, weights: Checkpoint) -> torch.Tensor:
        """The rows `rows` of the changed tensor, of which `weight` are the base's."""
        changed, values = weight.clone(), weights.read(self.tensor)
        for place, index in enumerate(self.indices):
            if 0 <= index - rows.start < len(weight):
                changed[index - rows.start] = values[place].to(weight.dtype)
        return changed
