"""Where one method becomes another, or gives an input back."""

import numpy as np
import pytest
import torch

from modelglue.merge.method import METHODS

generator = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return generator.normal(size=shape).astype(np.float32)


MODELS, BASE = numbers(3, 12, 8), numbers(12, 8)
WEIGHTS = [0.5, 0.3, 0.4]


def near(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, atol=1e-6)


def test_slerp_of_parallel_tensors_is_linear() -> None:
    a = MODELS[0]
    pair = np.stack([a, 3 * a])
    assert near(METHODS["slerp"](pair, t=0.3), METHODS["linear"](pair, weight=[0.7, 0.3]))
    assert near(METHODS["slerp"](np.stack([a, -a]), t=0.3), 0.4 * a)


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
def test_the_way_from_zeros_is_straight(method: str) -> None:
    pair = np.stack([np.zeros_like(BASE), BASE])
    assert near(METHODS[method](pair), BASE / 2)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_slerp_between_equally_long_tensors_keeps_the_length(t: float) -> None:
    pair = MODELS[:2] / np.linalg.norm(MODELS[:2], axis=(1, 2), keepdims=True)
    merged = METHODS["slerp"](pair, t=t)
    assert np.isclose(np.linalg.norm(merged), 1)
    if t in (0, 1):
        assert near(merged, pair[int(t)])


def test_nuslerp_of_whole_tensors_is_slerp() -> None:
    merged = METHODS["nuslerp"](MODELS[:2], weight=[1.4, 0.6])
    assert near(merged, METHODS["slerp"](MODELS[:2], t=0.3))


def test_nuslerp_of_columns_is_that_of_the_transposed_rows() -> None:
    columns = METHODS["nuslerp"](MODELS[:2], BASE, nuslerp_flatten=False, nuslerp_row_wise=True)
    turned = np.ascontiguousarray(MODELS[:2].transpose(0, 2, 1))
    rows = METHODS["nuslerp"](turned, np.ascontiguousarray(BASE.T), nuslerp_flatten=False)
    assert near(columns, rows.T)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_gives_the_base_for_right_angles(filter_wise: bool) -> None:
    deltas = np.zeros((2, 4, 6), np.float32)
    deltas[0, :, 1], deltas[1, :, 4] = 2, 0.5
    base = numbers(4, 6)
    assert near(METHODS["model_stock"](base + deltas, base, filter_wise=filter_wise), base)


def test_model_stock_gives_the_mean_for_parallel_task_vectors() -> None:
    delta = numbers(4, 6)
    models = np.stack([BASE[:4, :6] + delta * size for size in (0.5, 1, 3)])
    assert near(METHODS["model_stock"](models, BASE[:4, :6]), models.mean(axis=0))


@pytest.mark.parametrize("length", [1.0, 1e-5])
def test_model_stock_does_not_depend_on_the_length_of_task_vectors(length: float) -> None:
    deltas = MODELS + MODELS.mean(axis=0)
    expected = METHODS["model_stock"](deltas, np.zeros_like(BASE)) * length
    merged = METHODS["model_stock"](deltas * np.float32(length), np.zeros_like(BASE))
    assert np.allclose(merged, expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["dare_linear", "della_linear", "breadcrumbs"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_sparse_sum_that_keeps_all_is_task_arithmetic(method: str, normalize: bool) -> None:
    values = {"weight": WEIGHTS, "lambda_": 0.7, "normalize": normalize}
    merged = METHODS[method](MODELS, BASE, density=1.0, **values)
    assert near(merged, METHODS["task_arithmetic"](MODELS, BASE, **values))


@pytest.mark.parametrize("method", ["dare_ties", "della", "breadcrumbs_ties"])
def test_a_sparse_consensus_that_keeps_all_is_ties(method: str) -> None:
    values = {"weight": WEIGHTS, "lambda_": 0.7, "normalize": True}
    merged = METHODS[method](MODELS, BASE, density=1.0, **values)
    assert near(merged, METHODS["ties"](MODELS, BASE, **values))


def test_ties_of_one_model_that_keeps_all_is_task_arithmetic() -> None:
    for method in ("ties", "task_arithmetic"):
        merged = METHODS[method](MODELS[:1], BASE, lambda_=0.7)
        assert near(merged, BASE + np.float32(0.7) * (MODELS[0] - BASE))


@pytest.mark.parametrize(
    "method", ["ties", "dare_linear", "dare_ties", "breadcrumbs", "della", "della_linear"]
)
def test_density_0_gives_the_base(method: str) -> None:
    assert np.array_equal(METHODS[method](MODELS, BASE, density=0.0), BASE)


def test_what_is_drawn_and_rescaled_is_unbiased() -> None:
    base = np.zeros((50, 200), np.float32)
    model = numbers(1, 50, 200)
    for method, values in [("dare_linear", {}), ("della_linear", {"epsilon": 0.25})]:
        draws = [
            METHODS[method](model, base, density=0.4, seed=seed, **values) for seed in range(300)
        ]
        error = np.mean(draws, axis=0) - model[0]
        # Of 300 draws the standard error is at most |τ|·√((1/p − 1)/300), p ≥ 0.15.
        assert abs(error / model[0]).max() < 5.5 * np.sqrt((1 / 0.15 - 1) / 300)
        assert abs((error * np.sign(model[0])).mean()) < 0.005


def test_sce_of_models_of_equal_energy_that_agree_is_their_mean() -> None:
    deltas = abs(MODELS) / np.linalg.norm(MODELS, axis=(1, 2), keepdims=True)
    assert near(METHODS["sce"](BASE + deltas, BASE), (BASE + deltas).mean(axis=0))


@pytest.mark.parametrize("length", [1.0, 1e-4])
def test_sce_weighs_by_energy_however_small_it_is(length: float) -> None:
    base = np.zeros((2, 2), np.float32)
    deltas = np.stack([np.full((2, 2), 3.0), np.ones((2, 2))]).astype(np.float32)
    merged = METHODS["sce"](deltas * np.float32(length), base)
    assert np.allclose(merged, (0.9 * 3 + 0.1 * 1) * length, rtol=1e-5)


def test_multislerp_of_directions_that_cancel_is_the_weighted_sum() -> None:
    for models in (np.stack([BASE, -BASE]), np.zeros((3, 12, 8), np.float32)):
        assert near(METHODS["multislerp"](models), models.mean(axis=0))


def test_karcher_of_two_models_is_halfway_on_the_great_circle() -> None:
    pair = MODELS[:2] / np.linalg.norm(MODELS[:2], axis=(1, 2), keepdims=True)
    assert near(METHODS["karcher"](pair), METHODS["slerp"](pair, t=0.5))


def test_fisher_of_constant_statistics_is_linear() -> None:
    for constant in (1e-12, 0.0, 3.0):
        statistics = np.full_like(MODELS, constant)
        merged = METHODS["fisher"](MODELS, statistics=statistics, weight=WEIGHTS)
        assert near(merged, METHODS["linear"](MODELS, weight=WEIGHTS))


def test_regmean_of_equal_uncorrelated_inputs_is_the_mean() -> None:
    statistics = np.stack([np.eye(8, dtype=np.float32)] * 3)
    assert near(METHODS["regmean"](MODELS, statistics=statistics), MODELS.mean(axis=0))


def test_regmean_gives_inputs_that_never_occur_their_mean() -> None:
    seen = numbers(3, 8, 30)
    seen[:, 5] = 0
    merged = METHODS["regmean"](MODELS, statistics=seen @ seen.transpose(0, 2, 1))
    assert near(merged[:, 5], MODELS[:, :, 5].mean(axis=0))


def test_arcee_fusion_takes_what_stands_out() -> None:
    model = BASE.copy()
    model += numbers(12, 8) * np.float32(1e-3)
    model[3, 4] += 2
    merged = METHODS["arcee_fusion"](model[None], BASE)
    assert merged[3, 4] == model[3, 4]
    assert (merged == BASE).mean() > 0.7


def test_arcee_fusion_begins_one_and_a_half_quartile_ranges_above_the_median() -> None:
    # In one row importance goes with the change: quartiles 0.25, 0.5 and 0.75 of it, so from 1.25.
    change = np.append(np.linspace(0, 1, 1001), [1.2, 1.3]).astype(np.float32) / 100
    merged = METHODS["arcee_fusion"](change[None], np.zeros_like(change))
    assert np.flatnonzero(merged).tolist() == [1002]


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_a_probability_beyond_its_range_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        METHODS["della"](MODELS, BASE, density=density)


@pytest.mark.parametrize("method", ["linear", "ties", "multislerp", "della"])
@pytest.mark.parametrize("weight", [[0.1, 0.2, -0.3], [1e9, -1e9, 1.0], [0, 0, 0]], ids=str)
def test_weights_that_sum_to_0_are_refused(method: str, weight: list[float]) -> None:
    base = None if method == "linear" else BASE
    with pytest.raises(ValueError, match="sum to 0"):
        METHODS[method](MODELS, base, weight=weight)


@pytest.mark.parametrize("method", ["linear", "ties", "task_arithmetic", "della_linear"])
def test_small_weights_are_normalised_as_large_ones(method: str) -> None:
    base = None if method == "linear" else BASE
    large, small = (
        METHODS[method](MODELS, base, weight=[2 * w, w, -w / 2], normalize=True)
        for w in (1.0, 1e-10)
    )
    assert near(large, small)


@pytest.mark.parametrize("method", ["karcher", "multislerp"])
@pytest.mark.parametrize("length", [0.37, 1.37, 3.1])
def test_a_mean_direction_that_cancels_is_told_from_noise(method: str, length: float) -> None:
    # Opposite directions, of lengths that leave rounding in their dot products.
    for shape in [(1,), (64,), (64, 512)]:
        a = numbers(*shape)
        for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
            pair = torch.from_numpy(np.stack([a, np.float32(-length) * a])).to(dtype)
            expected = {"karcher": a * (1 + length) / 2, "multislerp": a * (1 - length) / 2}
            merged = METHODS[method](pair).float()
            assert np.allclose(merged, expected[method], atol=error)
