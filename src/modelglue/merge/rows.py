"""Tensors with one row a token, of models whose vocabularies differ: united row by row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]

Read = Callable[[int | None, Indices], Floats]
"""(source, or None for the base; rows [m]) → [m, width]: those rows, in that order."""


@dataclass(frozen=True)
class RowUnion:
    """Which row of each source every output row of one tensor is.

    Attributes:
        models: for each source, output row → its row, −1 where it has none: n of [rows] int64.
        base: the same for the base; None where the method has none.
    """

    models: tuple[Indices, ...]
    base: Indices | None

    @property
    def rows(self) -> int:
        """Rows of the output tensor."""
        return len(self.models[0])

    def gather(self, read: Read, rows: slice) -> tuple[Floats, Floats | None]:
        """The rows `rows` of the output, from every source.

        Args:
            read: reads rows of a source.
            rows: of the output, step 1.

        Returns:
            The models' [n, r·width] and the base's [r·width].
        """
        raise NotImplementedError
        

def runs(rows: Indices) -> list[tuple[int, int]]:
    """Rows as (first, count) of consecutive ones, in order; for reading many at once."""
    raise NotImplementedError
