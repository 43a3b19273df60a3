"""Methods that drop entries against loops over entries, written from the formulas."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import uniform
from modelglue.merge.kernels.random import model_keys, tensor_key
from modelglue.merge.method import METHODS

SHAPES = [(1,), (11,), (13, 9), (2, 5, 6)]
WEIGHT, DENSITY, GAMMA, LAMBDA = [0.5, -0.3, 0.9], [0.5, 0.25, 0.8], [0.1, 0.0, 0.3], 0.8


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check(method: str, shape: tuple[int, ...], stays: Any, consensus: bool, **values: Any) -> None:
    """Compare with a loop; `stays(deltas)` gives [n][k] factors, 0 for what is dropped."""
    models, base = numbers(0, 3, *shape), numbers(1, *shape)
    values = {"weight": WEIGHT, "lambda_": LAMBDA} | values
    merged = METHODS[method](models, base, **values)
    deltas = (models - base).reshape(3, -1)
    factors = stays(deltas)
    expected = []
    for j, origin in enumerate(base.ravel()):
        terms = [w * f[j] * float(d[j]) for w, f, d in zip(WEIGHT, factors, deltas)]
        counted = WEIGHT
        if consensus:
            sign = 1 if sum(terms) >= 0 else -1
            agreeing = [i for i, term in enumerate(terms) if term * sign > 0]
            terms, counted = [terms[i] for i in agreeing], [WEIGHT[i] for i in agreeing]
        total = (sum(counted) or 1) if values.get("normalize") else 1
        expected.append(float(origin) + LAMBDA * sum(terms) / total)
    assert np.allclose(merged.ravel(), expected, rtol=1e-5, atol=1e-5)


def largest(delta: np.ndarray, count: int) -> list[int]:
    """Indices of the largest magnitudes; of equal ones the first."""
    return sorted(range(len(delta)), key=lambda j: (-abs(float(delta[j])), j))[:count]


def marked(k: int, indices: Any, delta: np.ndarray, rescale: bool) -> list[float]:
    chosen = set(indices)
    factor = 1.0
    if rescale and chosen:
        kept = math.fsum(abs(float(delta[j])) for j in chosen)
        factor = math.fsum(abs(float(d)) for d in delta) / kept
    return [factor * (j in chosen) for j in range(k)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_task_arithmetic(shape: tuple[int, ...], normalize: bool) -> None:
    check("task_arithmetic", shape, np.ones_like, False, normalize=normalize)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("density", [DENSITY, [0.001, 1.0, 0.3]], ids=["some", "extreme"])
def test_ties(shape: tuple[int, ...], normalize: bool, rescale: bool, density: list[float]) -> None:
    def stays(deltas: np.ndarray) -> list[list[float]]:
        k = deltas.shape[1]
        return [
            marked(k, largest(delta, max(1, math.floor(share * k))), delta, rescale)
            for delta, share in zip(deltas, density)
        ]

    check("ties", shape, stays, True, density=density, normalize=normalize, rescale=rescale)


def test_of_equal_magnitudes_ties_keeps_the_first() -> None:
    base = np.zeros(6, np.float32)
    model = np.array([[1, -1, 2, 1, -1, 1]], np.float32)
    merged = METHODS["ties"](model, base, density=0.5)
    assert merged.tolist() == [1, -1, 2, 0, 0, 0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("rescale", [False, True])
def test_breadcrumbs(shape: tuple[int, ...], method: str, rescale: bool) -> None:
    density = [0.5, 1.0, 0.8]  # the last leaves room for less than its gamma

    def stays(deltas: np.ndarray) -> list[list[float]]:
        k, found = deltas.shape[1], []
        for delta, share, gamma in zip(deltas, density, GAMMA):
            left = math.floor(share * k)
            outliers = min(math.floor(gamma * k), k - left)
            found.append(marked(k, largest(delta, outliers + left)[outliers:], delta, rescale))
        return found

    values = {"density": density, "gamma": GAMMA, "rescale": rescale}
    check(method, shape, stays, method.endswith("ties"), normalize=True, **values)


@pytest.mark.parametrize("start", [0, 1000, 2**32 - 3, 2**33 - 1, 5 * 2**32])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_random_bits_are_a_hash_of_the_index(start: int, convert: Any) -> None:
    chunk = Chunk(convert(np.zeros((2, 6), np.float32)), None, start, 6, tensor_key(3, "name"))
    for model in range(2):
        for index, drawn in enumerate(uniform(chunk, model).tolist(), start):
            key, twist = model_keys(chunk.key, model, index)
            h = (index % 2**32 * 0x9E3779B9 + key) % 2**32
            h = ((h ^ (h >> 16)) * 0x7FEB352D % 2**32) ^ twist
            h = (h ^ (h >> 15)) * 0x846CA68B % 2**32
            assert drawn == h ^ (h >> 16)


def draws(shape: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """The numbers from 0 to below 1 that stand behind every entry of every model."""
    k = math.prod(shape)
    chunk = Chunk(np.zeros((3, k), np.float32), None, 0, k, tensor_key(seed, ""))
    return [uniform(chunk, i) / 2**32 for i in range(3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [False, True])
def test_dare(shape: tuple[int, ...], method: str, rescale: bool) -> None:
    def stays(deltas: np.ndarray) -> list[list[float]]:
        return [
            [(d < p) / (p if rescale else 1) for d in drawn]
            for drawn, p in zip(draws(shape, 7), DENSITY)
        ]

    values = {"density": DENSITY, "rescale": rescale, "seed": 7}
    check(method, shape, stays, method == "dare_ties", **values)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize("rescale", [False, True])
def test_della(shape: tuple[int, ...], method: str, rescale: bool) -> None:
    epsilon, width = 0.15, shape[-1]

    def stays(deltas: np.ndarray) -> list[list[float]]:
        found = []
        for delta, drawn, density in zip(deltas, draws(shape, 7), DENSITY):
            factors = []
            for j in range(len(delta)):
                row = j // width * width
                mine = (abs(float(delta[j])), j)
                below = sum((abs(float(delta[i])), i) < mine for i in range(row, row + width))
                share = below / (width - 1) if width > 1 else 0.5
                p = density - epsilon + 2 * epsilon * share
                factors.append((drawn[j] < p) / (p if rescale else 1))
            found.append(factors)
        return found

    values = {"density": DENSITY, "epsilon": epsilon, "rescale": rescale, "seed": 7}
    check(method, shape, stays, method == "della", normalize=method == "della", **values)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("select_topk", [1.0, 0.4, 0.0])
def test_sce(shape: tuple[int, ...], select_topk: float) -> None:
    models, base = numbers(2, 3, *shape), numbers(3, *shape)
    models[:, ..., 0] = base[..., 0]  # entries that nobody changed
    merged = METHODS["sce"](models, base, select_topk=select_topk)
    deltas = (models - base).reshape(3, -1).astype(float)
    variance = deltas.var(axis=0)
    order = sorted(np.flatnonzero(variance), key=lambda j: (-variance[j], j))
    chosen = order[: math.floor(select_topk * len(order))]
    if select_topk < 1:
        stays = np.zeros(deltas.shape[1])
        stays[chosen] = 1
        deltas = deltas * stays
    energy = (deltas**2).sum(axis=1)
    shares = energy / energy.sum() if energy.sum() else np.full(3, 1 / 3)
    expected = base.ravel().astype(float)
    for j, column in enumerate(deltas.T):
        sign = 1 if column.sum() >= 0 else -1
        agreeing = [i for i in range(3) if column[i] * sign > 0]
        if agreeing:
            weighed = sum(shares[i] * column[i] for i in agreeing)
            expected[j] += weighed / sum(shares[i] for i in agreeing)
    assert np.allclose(merged.ravel(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arcee_fusion(shape: tuple[int, ...]) -> None:
    base = numbers(4, *shape)
    model = base + numbers(5, *shape) ** 3
    merged = METHODS["arcee_fusion"](model[None], base)
    importance = []
    for theta, origin in zip(model.reshape(-1, shape[-1]), base.reshape(-1, shape[-1])):
        p, q = ([math.exp(float(x)) for x in row] for row in (theta, origin))
        p, q = [x / sum(p) + 1e-8 for x in p], [x / sum(q) + 1e-8 for x in q]
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q))
        importance += [abs(float(a) - float(b)) * divergence for a, b in zip(theta, origin)]
    ordered = sorted(importance)
    low, middle, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.25, 0.5, 0.75))
    threshold = middle + 1.5 * (high - low)
    clear = np.array([abs(x - threshold) > 1e-6 * threshold for x in importance])
    expected = np.where(np.array(importance) >= threshold, model.ravel(), base.ravel())
    assert np.array_equal(merged.ravel()[clear], expected[clear])
    assert clear.sum() >= len(clear) - 1
