"""Cuts against a stable sort: exactly so many entries, of equal ones the first."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from modelglue.merge.kernels import cuts, magnitude_cuts
from modelglue.merge.kernels.cuts import Cuts
from modelglue.merge.memory import InMemory

COUNT = 40_000
BASE = np.zeros(COUNT, np.float32)


def spread(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=COUNT) * 10.0 ** rng.integers(-30, 30, COUNT)


def few_values(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-3, 4, COUNT) * 0.25


def sorted_by_size(rng: np.random.Generator) -> np.ndarray:
    """A sample of runs tells little of it."""
    return np.sort(np.abs(rng.normal(size=COUNT))) * rng.choice([-1, 1], COUNT)


def mostly_zero(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(COUNT) < 0.9, 0.0, rng.normal(size=COUNT))


def denormal(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-5, 6, COUNT) * 1e-45


def coarse(rng: np.random.Generator) -> np.ndarray:
    """As differences of bfloat16 are: thousands of entries a value."""
    return np.round(rng.normal(size=COUNT), 2)


SORTS = [spread, few_values, sorted_by_size, mostly_zero, denormal, coarse]
FRACTIONS = (0.0, 1e-4, 0.1, 0.5, 0.999, 1.0)


def above(values: np.ndarray, count: int) -> np.ndarray:
    """[k] bool, by a stable sort of all magnitudes."""
    found = np.zeros(len(values), bool)
    found[np.argsort(-np.abs(values), kind="stable")[:count]] = True
    return found


def taken(cut: Cuts, model: int, values: np.ndarray) -> np.ndarray:
    bits = np.abs(values).view(np.uint32)
    limit, last = cut.bits[model], cut.last[model]
    return (bits > limit) | ((bits == limit) & (np.arange(len(bits)) <= last))


@pytest.mark.parametrize(
    ("small", "held"),
    [(0, 1 << 20), (0, 100), (1 << 20, 0)],
    ids=["by sample", "by bins", "at once"],
)
@pytest.mark.parametrize("sort", SORTS, ids=[sort.__name__ for sort in SORTS])
@pytest.mark.parametrize("torch_too", [False, True], ids=["numpy", "torch"])
def test_exactly_so_many_entries_are_above(
    monkeypatch: pytest.MonkeyPatch,
    small: int,
    held: int,
    sort: Callable[[np.random.Generator], np.ndarray],
    torch_too: bool,
) -> None:
    monkeypatch.setattr(cuts, "_SMALL", small)
    monkeypatch.setattr(cuts, "_HELD", held)
    rng = np.random.default_rng(7)
    models = np.stack([sort(rng).astype(np.float32) for _ in FRACTIONS])
    counts = [int(COUNT * fraction) for fraction in FRACTIONS]
    # A power of two of entries a chunk, and another number, of which the last chunk is a rest.
    for size in (1 << 12, 7_001):
        whole = InMemory(models, BASE, (COUNT,), size=size)
        if torch_too:
            given = torch.from_numpy(models), torch.from_numpy(BASE)
            whole = InMemory(*given, (COUNT,), size=size)
        cut = magnitude_cuts(whole, counts)
        for i, count in enumerate(counts):
            assert np.array_equal(taken(cut, i, models[i]), above(models[i], count))


def test_a_sample_that_misleads_costs_passes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "_SMALL", 0)
    values = np.concatenate([np.full(COUNT // 2, 100.0), spread(np.random.default_rng(1))[:COUNT]])
    values = values[:COUNT].astype(np.float32)

    class Misleading(InMemory):
        def sample(self, count: int):
            return self.read(0, COUNT // 4)

    whole = Misleading(values[None], BASE, (COUNT,), size=5_000)
    for count in (10, COUNT // 3, COUNT // 2 + 17, COUNT - 5):
        cut = magnitude_cuts(whole, [count])
        assert np.array_equal(taken(cut, 0, values), above(values, count))


@pytest.mark.parametrize("sort", SORTS, ids=[sort.__name__ for sort in SORTS])
@pytest.mark.parametrize("numel", [2, 64, cuts._TINY])
def test_of_a_tiny_tensor_too(
    sort: Callable[[np.random.Generator], np.ndarray], numel: int
) -> None:
    rng = np.random.default_rng(3)
    models = np.stack([sort(rng)[:numel].astype(np.float32) for _ in range(4)])
    counts = [1, max(1, numel // 3), max(1, numel // 2), numel - 1]
    cut = magnitude_cuts(InMemory(models, BASE[:numel], (numel,)), counts)
    for i, count in enumerate(counts):
        assert np.array_equal(taken(cut, i, models[i]), above(models[i], count))
