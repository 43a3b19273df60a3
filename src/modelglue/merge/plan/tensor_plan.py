"""One output tensor of a merge: what it is made of and how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelglue.merge.vocabulary.rows import RowUnion

FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of one of the plan's checkpoints.

    Attributes:
        model: index into `MergePlan.models` (of `TensorPlan.statistics`: into
            `MergePlan.statistics`); None is `MergePlan.base`.
        name: of the tensor there; it differs from the output's where layers are stacked anew or a
            tied head is read from the embedding.
    """

    model: int | None
    name: str


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor.

    Attributes:
        method: the merge method's name.
        sources: what is merged, n of them; with slices another n and other models than elsewhere.
        base: the base's tensor, kept apart from the sources; None where the method has no base.
        parameters: every parameter of the method by its name in a configuration, resolved for this
            tensor; per-model ones are tuples of n. Many tensors may share one mapping.
        statistics: one a source, for methods that ask for them; None where there are none.
        union: how rows of different vocabularies come together; None where rows are alike.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str
    sources: tuple[Source, ...]
    base: Source | None
    parameters: Mapping[str, Any]
    statistics: tuple[Source | None, ...] = ()
    union: RowUnion | None = None

    @property
    def numel(self) -> int:
        """Elements of the output tensor."""
        return math.prod(self.shape)

    @property
    def copied(self) -> bool:
        """Whether it is no weight (a mask, position ids) and is taken from the first source."""
        return self.dtype not in FLOATING
