"""Tensors with one row a token, of models whose vocabularies differ: united row by row.

Every output row is, in each source, some row of its own, or none. A source that has none is lent
one: the mean of rows of other sources (of one, mostly), or zeros. So all sources get the same
shape, their rows mean the same tokens, and any merge method can go on from there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]

Read = Callable[[int | None, Indices], Floats]
"""(source, or None for the base; rows [m], in any order, m may be 0) → [m, width]."""

# Rows at a time, where a mean over all of them is wanted.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Loans:
    """What sources without a row of their own are lent: the mean of what the lenders have.

    Attributes:
        rows: [m] int64, the output rows that some source lacks, ascending.
        models: for each source, the row that it lends, −1 where it lends none: n of [m] int64.
            Where nobody lends, the row is zeros.
        base: the same of the base; None where there is no base.
    """

    rows: Indices
    models: tuple[Indices, ...]
    base: Indices | None = None


@dataclass(frozen=True, eq=False)
class RowUnion:
    """Which row of each source every output row of one tensor is.

    It belongs to one tensor of one merge: the mean that fills padding is computed when first
    wanted, and kept.

    Attributes:
        models: for each source, output row → its row, −1 where it is lent one: n of [rows] int64.
        base: the same of the base; None where the method doesn't read it (it may still lend).
        loans: what is lent, for every row that some source lacks.
        filled: from this row on, a source's rows are the mean of its rows before.
    """

    models: tuple[Indices, ...]
    base: Indices | None
    loans: Loans
    filled: int
    _means: list[tuple[Floats, Floats | None]] = field(default_factory=list, repr=False)

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
        start, stop, _ = rows.indices(self.rows)
        models, base = self._taken(read, start, max(start, min(stop, self.filled)))
        if stop > self.filled:
            count = stop - max(start, self.filled)
            means, base_mean = self._mean(read)
            models = np.concatenate([models, np.repeat(means[:, None], count, axis=1)], axis=1)
            if base is not None and base_mean is not None:
                base = np.concatenate([base, np.repeat(base_mean[None], count, axis=0)])
        return models.reshape(len(models), -1), None if base is None else base.reshape(-1)

    def _taken(self, read: Read, start: int, stop: int) -> tuple[Floats, Floats | None]:
        """[n, r, width] and [r, width], of rows before `filled`."""
        lent = self._lent(read, start, stop)
        models = [
            _with_loans(read(index, own[own >= 0]), own, lent)
            for index, own in enumerate(own[start:stop] for own in self.models)
        ]
        base = None
        if self.base is not None:
            own = self.base[start:stop]
            base = _with_loans(read(None, own[own >= 0]), own, lent)
        return np.stack(models), base

    def _lent(self, read: Read, start: int, stop: int) -> tuple[Indices, Floats]:
        """The rows in this range that some source lacks, counted from `start`, and the loans."""
        first, last = np.searchsorted(self.loans.rows, [start, stop])
        rows = self.loans.rows[first:last] - start
        lenders: list[tuple[int | None, Indices]] = list(enumerate(self.loans.models))
        if self.loans.base is not None:
            lenders.append((None, self.loans.base))
        total = np.zeros((len(rows), 1), np.float32)
        count = np.zeros((len(rows), 1), np.float32)
        for source, offered in lenders:
            offered = offered[first:last]
            lends = offered >= 0
            if lends.any():
                values = read(source, offered[lends])
                if total.shape[1] != values.shape[1]:
                    total = np.repeat(total, values.shape[1], axis=1)
                total[lends] += values
                count[lends] += 1
        return rows, np.asarray(total / np.maximum(count, 1), np.float32)

    def _mean(self, read: Read) -> tuple[Floats, Floats | None]:
        """[n, width] and [width]: every source's mean row, what it is lent included."""
        if not self._means:
            sums: list[NDArray[np.float64]] = [np.zeros(1)] * (len(self.models) + 1)
            for start in range(0, self.filled, _BLOCK):
                models, base = self._taken(read, start, min(start + _BLOCK, self.filled))
                for index, part in enumerate([*models, base]):
                    if part is not None:
                        sums[index] = sums[index] + part.sum(axis=0, dtype=np.float64)
            means = [(total / self.filled).astype(np.float32) for total in sums]
            self._means.append((np.stack(means[:-1]), None if self.base is None else means[-1]))
        return self._means[0]


def runs(rows: Indices) -> list[tuple[int, int]]:
    """Rows as (first, count) of consecutive ones, in order, so that many are read at once.

    >>> runs(np.array([4, 5, 6, 0, 9, 10]))
    [(4, 3), (0, 1), (9, 2)]
    """
    if not len(rows):
        return []
    starts = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1])
    counts = np.diff(np.concatenate([starts, [len(rows)]]))
    return list(zip(rows[starts].tolist(), counts.tolist(), strict=True))


def _with_loans(found: Floats, own: Indices, lent: tuple[Indices, Floats]) -> Floats:
    """A source's rows, in the output's order: `found` where it has one, a loan elsewhere."""
    if len(found) == len(own):
        return found
    rows, loans = lent
    result = np.empty((len(own), found.shape[1]), np.float32)
    result[own >= 0] = found
    lacking = own[rows] < 0
    result[rows[lacking]] = loans[lacking]
    return result
