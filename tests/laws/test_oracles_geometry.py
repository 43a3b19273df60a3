"""Geometric methods against loops over whole tensors in float64, written from the formulas."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from modelglue.merge.method import METHODS

SHAPES = [(1,), (9,), (12, 7), (6, 1), (3, 4, 5)]


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check(method: str, models: np.ndarray, base: Any, expected: np.ndarray, **values: Any) -> None:
    merged = METHODS[method](models, base, **values)
    assert np.allclose(merged, expected, rtol=1e-5, atol=2e-6)


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return math.fsum(float(x) * float(y) for x, y in zip(a.ravel(), b.ravel()))


def arc(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    cosine = dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))
    if abs(cosine) > 1 - 1e-12:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_linear(shape: tuple[int, ...], normalize: bool) -> None:
    models, weights = numbers(0, 3, *shape), [0.5, -0.2, 0.9]
    expected = np.zeros(shape)
    for weight, model in zip(weights, models):
        expected += weight / (1.2 if normalize else 1) * model.astype(float)
    check("linear", models, None, expected, weight=weights, normalize=normalize)


def test_passthrough() -> None:
    model = numbers(1, 1, 4, 5)
    assert np.array_equal(METHODS["passthrough"](model), model[0])
    check("passthrough", model, None, 0.3 * model[0].astype(float), scale=0.3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.2])
def test_slerp(shape: tuple[int, ...], t: float) -> None:
    models = numbers(2, 2, *shape)
    check("slerp", models, None, arc(*models.astype(float), t), t=t)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("along", ["tensor", "row", "column"])
@pytest.mark.parametrize("with_base", [False, True])
def test_nuslerp(shape: tuple[int, ...], along: str, with_base: bool) -> None:
    models, base = numbers(3, 2, *shape), numbers(4, *shape)
    a, b = (models - base if with_base else models).astype(float)
    expected = np.zeros(shape)
    if along == "tensor" or len(shape) == 1:
        expected[:] = arc(a, b, 0.6)
    elif along == "row":
        for row in np.ndindex(shape[:-1]):
            expected[row] = arc(a[row], b[row], 0.6)
    else:
        for column in np.ndindex(shape[1:]):
            line = (slice(None), *column)
            expected[line] = arc(a[line], b[line], 0.6)
    values = {"nuslerp_flatten": along == "tensor", "nuslerp_row_wise": along == "column"}
    base = base if with_base else None
    expected = expected if base is None else expected + base
    check("nuslerp", models, base, expected, weight=[0.2, 0.3], **values)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("n", [2, 4])
def test_model_stock(shape: tuple[int, ...], filter_wise: bool, n: int) -> None:
    base = numbers(5, *shape)
    models = numbers(6, n, *shape) + 2 * numbers(7, *shape)

    def stock(deltas: np.ndarray) -> np.ndarray:
        cosines = [dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for a, b in combinations(deltas, 2)]
        cosine = sum(cosines) / len(cosines)
        if abs(1 + (n - 1) * cosine) < 1e-9:
            return 0 * deltas[0]
        t: np.ndarray = n * cosine / (1 + (n - 1) * cosine) * deltas.mean(axis=0)
        return t

    deltas, expected = models.astype(float) - base, base.astype(float)
    if filter_wise:
        for row in np.ndindex(shape[:-1]):
            expected[row] += stock(deltas[(slice(None), *row)])
    else:
        expected += stock(deltas)
    check("model_stock", models, base, expected, filter_wise=filter_wise)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_multislerp_with_its_detour_over_the_tangent_space(
    shape: tuple[int, ...], with_base: bool, normalize: bool
) -> None:
    models, weights = numbers(8, 3, *shape), np.array([0.5, 0.3, 0.6])
    base = numbers(9, *shape) if with_base else None
    shares = weights / weights.sum() if normalize else weights
    points = models.astype(float) - (0 if base is None else base)
    lengths = [math.sqrt(dot(x, x)) for x in points]
    units = [x / length for x, length in zip(points, lengths)]
    mean = sum(share * u for share, u in zip(shares, units))
    mean = mean / math.sqrt(dot(mean, mean))
    tangent = sum(share * (u - dot(u, mean) * mean) for share, u in zip(shares, units))
    step = math.sqrt(dot(tangent, tangent)) + 1e-8
    expected = math.cos(step) * mean + math.sin(step) / step * tangent
    expected = expected * sum(share * length for share, length in zip(shares, lengths))
    expected = expected if base is None else expected + base
    values = {"weight": list(weights), "normalize_weights": normalize}
    check("multislerp", models, base, expected, **values)


def on_sphere(points: list[np.ndarray], iterations: int) -> np.ndarray:
    mean = sum(points)
    mean = mean / math.sqrt(dot(mean, mean))
    for _ in range(iterations):
        tangent = np.zeros_like(mean)
        for point in points:
            angle = math.acos(max(-1.0, min(1.0, dot(point, mean))))
            if angle > 1e-9:
                tangent += angle / math.sin(angle) * (point - math.cos(angle) * mean) / len(points)
        step = math.sqrt(dot(tangent, tangent))
        if step < 1e-12:
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
    return mean


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_karcher(shape: tuple[int, ...], iterations: int) -> None:
    models = (numbers(10, 4, *shape) + numbers(11, *shape)).astype(np.float32)
    lengths = [math.sqrt(dot(x, x)) for x in models]
    units = [x.astype(float) / length for x, length in zip(models, lengths)]
    expected = on_sphere(units, iterations) * sum(lengths) / 4
    check("karcher", models, None, expected, max_iter=iterations, tol=1e-12)


def test_karcher_leaves_out_what_has_no_direction() -> None:
    models = numbers(12, 3, 5, 4)
    models[1] = 0
    lengths = [math.sqrt(dot(x, x)) for x in models]
    units = [models[i].astype(float) / lengths[i] for i in (0, 2)]
    check("karcher", models, None, on_sphere(units, 10) * sum(lengths) / 3)
