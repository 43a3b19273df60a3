"""Fisher merging and RegMean against loops and a least-squares solution."""

import numpy as np
import pytest

from modelglue.errors import MergeError
from modelglue.merge.memory import Held, InMemory
from modelglue.merge.method import METHODS

generator = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return generator.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [1.0, 1e-9], ids=["large", "small"])
def test_fisher(size: float) -> None:
    models, fishers, weights = numbers(3, 4, 5), numbers(3, 4, 5) ** 2 * size, [0.5, 1.0, 2.0]
    fishers[0, 1, 2] = 0
    merged = METHODS["fisher"](models, statistics=fishers, weight=weights)
    for place in np.ndindex(4, 5):
        shares = [w * max(float(f[place]), 1e-20) for w, f in zip(weights, fishers)]
        expected = sum(s * float(m[place]) for s, m in zip(shares, models)) / sum(shares)
        assert merged[place] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_regmean_is_the_least_squares_solution() -> None:
    models = numbers(2, 6, 5)
    inputs = [numbers(40, 5), 3 * numbers(30, 5)]
    grams = np.stack([x.T @ x for x in inputs])
    merged = METHODS["regmean"](models, statistics=grams, alpha=1.0)
    seen = np.concatenate(inputs).astype(float)
    outputs = np.concatenate([x.astype(float) @ w.T for x, w in zip(inputs, models)])
    solution = np.linalg.lstsq(seen, outputs, rcond=None)[0].T
    assert np.allclose(merged, solution, atol=1e-5)


@pytest.mark.parametrize("chunk", [5, 15, 1000])
def test_regmean(chunk: int) -> None:
    from modelglue.merge.memory import merge_tensors

    models, weights = numbers(3, 6, 5), [1.0, 0.5, 2.0]
    seen = numbers(3, 20, 5)
    grams = seen.transpose(0, 2, 1) @ seen
    values = {"weight": weights, "alpha": 0.7}
    merged = merge_tensors(
        METHODS["regmean"], models, statistics=grams, parameters=values, chunk=chunk
    )
    left, right = np.zeros((6, 5)), np.zeros((5, 5))
    for weight, model, gram in zip(weights, models.astype(float), grams.astype(float)):
        shrunk = 0.7 * gram + 0.3 * np.diag(np.diag(gram))
        left += weight * model @ shrunk
        right += weight * shrunk
    assert np.allclose(merged, left @ np.linalg.pinv(right), atol=1e-5)


class Counted(Held):
    """A matrix of statistics that counts the rows that are read."""

    read_rows = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        self.read_rows += stop - start
        found: np.ndarray = super().read(start, stop)
        return found


def test_regmean_reads_every_gram_matrix_once() -> None:
    seen = numbers(2, 20, 5)
    whole = InMemory(numbers(2, 300), None, (60, 5), size=25)
    whole.statistics = held = [Counted(x.T @ x) for x in seen]
    METHODS["regmean"].run(whole, {"weight": (1.0, 1.0), "alpha": 0.9})
    assert [gram.read_rows for gram in held] == [5, 5]


def test_statistics_that_are_no_gram_matrix_are_refused() -> None:
    with pytest.raises(MergeError, match="negative eigenvalues"):
        METHODS["regmean"](numbers(2, 6, 5), statistics=[-np.eye(5, dtype=np.float32)] * 2)


def test_statistics_that_are_not_finite_make_the_result_so() -> None:
    grams = np.stack([np.eye(5, dtype=np.float32)] * 2)
    grams[1, 2, 3] = np.nan
    merged = METHODS["regmean"](numbers(2, 6, 5), statistics=grams)
    assert np.isnan(merged).all()


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)], ids=str)
def test_regmean_of_what_is_no_matrix_is_the_mean(shape: tuple[int, ...]) -> None:
    models = numbers(3, *shape)
    merged = METHODS["regmean"](models, statistics=[], weight=[1.0, 1.0, 2.0])
    assert np.allclose(merged, (models * np.reshape([1, 1, 2], (3, *[1] * len(shape)))).sum(0) / 4)
