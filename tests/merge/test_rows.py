"""Row unions against a loop over rows that follows the words of the documentation."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelglue.merge.vocabulary.rows import Loans, RowUnion, runs


@dataclass
class Case:
    union: RowUnion
    matrices: dict[int | None, np.ndarray]

    def read(self, source, rows):
        assert rows.dtype == np.int64
        return self.matrices[source][rows].astype(np.float32)

    def expected(self, source):
        own = self.union.base if source is None else self.union.models[source]
        loans = self.union.loans
        lenders = {**dict(enumerate(loans.models)), None: loans.base}
        rows = []
        for row in range(self.union.filled):
            if own[row] >= 0:
                rows.append(self.matrices[source][own[row]])
                continue
            at = loans.rows.tolist().index(row)
            lent = [
                self.matrices[lender][offered[at]]
                for lender, offered in lenders.items()
                if offered is not None and offered[at] >= 0
            ]
            zeros = np.zeros(self.matrices[source].shape[1])
            rows.append(np.mean(lent, axis=0) if lent else zeros)
        rows += [np.mean(rows, axis=0)] * (self.union.rows - self.union.filled)
        return np.array(rows)


@st.composite
def cases(draw):
    n, rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    filled = draw(st.integers(1, rows))
    lends, reads = draw(st.booleans()), draw(st.booleans())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sources = [*range(n), *([None] if lends or reads else [])]
    stored = {source: int(random.integers(1, 9)) for source in sources}
    matrices = {source: random.normal(size=(stored[source], width)) for source in sources}
    maps = {source: random.integers(-1, stored[source], size=rows) for source in sources}
    asked = [s for s in sources if s is not None or reads]
    lacking = np.flatnonzero(np.any([maps[s][:filled] < 0 for s in asked], axis=0))
    offers = {s: random.integers(-1, stored[s], size=len(lacking)) for s in sources}
    union = RowUnion(
        tuple(maps[i] for i in range(n)),
        maps[None] if reads else None,
        Loans(lacking, tuple(offers[i] for i in range(n)), offers.get(None)),
        filled,
    )
    return Case(union, matrices)


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 5))
def test_rows_are_each_sources_own_or_a_loan_whatever_the_pieces(case, step):
    width = case.matrices[0].shape[1]
    expected = np.array([case.expected(i) for i in range(len(case.union.models))])
    for start in range(0, case.union.rows, step):
        rows = slice(start, min(start + step, case.union.rows))
        models, base = case.union.gather(case.read, rows)
        count = rows.stop - rows.start
        assert models.dtype == np.float32
        assert models.shape == (len(case.union.models), count * width)
        np.testing.assert_allclose(models, expected[:, rows].reshape(len(models), -1), atol=1e-6)
        if case.union.base is None:
            assert base is None
        else:
            wanted = case.expected(None)[rows].reshape(-1)
            np.testing.assert_allclose(base, wanted, atol=1e-6)


def test_only_rows_that_are_wanted_are_read():
    asked = []

    def read(source, rows):
        asked.extend((source, row) for row in rows.tolist())
        return np.ones((len(rows), 2), np.float32)

    own = np.arange(10)
    lacking = np.where(own < 8, own, -1)
    loans = Loans(np.array([8, 9]), (np.array([8, 9]), np.array([-1, -1])))
    RowUnion((own, lacking), None, loans, 10).gather(read, slice(6, 9))
    assert sorted(asked) == [(0, 6), (0, 7), (0, 8), (0, 8), (1, 6), (1, 7)]


@pytest.mark.parametrize("rows", [[], [3], [3, 4], [4, 3], [1, 2, 3, 7, 8, 0]])
def test_runs_spell_out_the_rows_again(rows):
    found = runs(np.array(rows, dtype=np.int64))
    assert [first + i for first, count in found for i in range(count)] == rows


def test_consecutive_rows_are_one_run():
    assert runs(np.arange(5, 900)) == [(5, 895)]
