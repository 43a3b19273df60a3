"""Routers from a table of scores: against naive neighbours, and their laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelglue.errors import MixtureError
from modelglue.mixture.router_scores import (
    NearestRouter,
    left_out,
    nearest_items,
    validate_on_items,
)


def table(items=40, features=6, experts=3, seed=0):
    """Items about three centres; an expert is right at its own centre with more luck."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(experts, features, generator=generator) * 3
    owner = torch.randint(experts, (items,), generator=generator)
    found = centres[owner] + torch.randn(items, features, generator=generator)
    chance = torch.full((items, experts), 0.2)
    chance[torch.arange(items), owner] = 0.9
    return found, (torch.rand(items, experts, generator=generator) < chance).float(), owner


def naive(features, scores, points, k):
    """Sort the distances of each point; average the scores of the first k."""
    items = features.numpy().astype(float)
    units = np.sqrt(((items - items.mean(0)) ** 2).mean(0))
    rows = []
    for point in points.numpy().astype(float):
        order = np.argsort(np.sqrt((((items - point) / units) ** 2).sum(-1)), kind="stable")
        rows.append(scores.numpy()[order[:k]].mean(0))
    return np.array(rows)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_logits_are_the_mean_scores_of_the_nearest_items(k):
    features, scores, _ = table()
    points, _, _ = table(items=7, seed=5)
    router = nearest_items(features, scores, k=k)
    found = router.logits(points).numpy() / router.sharpness
    np.testing.assert_allclose(found, naive(features, scores, points, k), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_with_one_neighbour_an_item_goes_to_its_own_best_expert(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(30, 4, generator=generator)
    scores = torch.rand(30, 3, generator=generator)
    router = nearest_items(features, scores, k=1)
    assert torch.equal(router.logits(features).argmax(dim=1), scores.argmax(dim=1))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(3)), k=st.integers(1, 8))
def test_permuting_experts_permutes_logits_and_the_order_of_items_does_not_matter(seed, order, k):
    features, scores, _ = table(seed=seed)
    points, _, _ = table(items=5, seed=seed + 1)
    straight = nearest_items(features, scores, k=k).logits(points)
    permuted = nearest_items(features, scores[:, order], k=k).logits(points)
    torch.testing.assert_close(permuted, straight[:, order])
    shuffled = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    other = nearest_items(features[shuffled], scores[shuffled], k=k).logits(points)
    torch.testing.assert_close(other, straight)


def test_items_at_the_same_distance_all_count():
    features = torch.tensor([[1.0], [-1.0], [5.0]])
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    router = nearest_items(features, scores, k=1)
    assert router.probabilities(torch.tensor([[0.0]])).tolist() == [[0.5, 0.5]]


def test_left_out_items_do_not_count_for_themselves():
    features, scores, _ = table(items=12)
    router = nearest_items(features, scores, k=3)
    found = left_out(router, 3).numpy()
    units = router.scale.numpy().astype(float)
    for i in range(12):
        others = [j for j in range(12) if j != i]
        apart = [np.linalg.norm((features[j] - features[i]).numpy() / units) for j in others]
        near = [others[place] for place in np.argsort(apart)[:3]]
        np.testing.assert_allclose(found[i], scores[near].mean(dim=0).numpy(), atol=1e-6)


def test_k_is_the_one_by_which_left_out_items_score_best():
    features, scores, _ = table(items=60)
    router = nearest_items(features, scores)
    means = {}
    for k in (1, 2, 4, 8, 16):
        chosen = left_out(router, k).argmax(dim=1, keepdim=True)
        means[k] = float(scores.gather(1, chosen).mean())
    assert router.k in means
    assert means[router.k] == max(means.values())


def test_it_finds_who_is_good_where_and_says_so():
    features, scores, owner = table(items=200)
    router = nearest_items(features, scores)
    right = router.logits(features).argmax(dim=1) == owner
    assert right.double().mean() > 0.9
    told = validate_on_items(router)
    assert told.single < told.routed <= told.oracle
    assert (told.k, told.items) == (router.k, 200)
    assert validate_on_items(nearest_items(features[:1], scores[:1])) is None


def test_the_linear_router_fitted_to_it_goes_the_same_way():
    features, scores, _ = table(items=200)
    router = nearest_items(features, scores)
    fitted = router.fitted()
    points, _, _ = table(items=100, seed=0)
    agree = fitted.logits(points).argmax(dim=1) == router.logits(points).argmax(dim=1)
    assert agree.double().mean() > 0.9
    assert router.condition == fitted.condition < float("inf")


def test_the_fit_is_the_regression_written_out():
    features, scores, _ = table(items=50, features=4)
    router = nearest_items(features, scores, k=5)
    fitted = router.fitted()
    x = features.double().numpy()
    y = router.logits(features).numpy()
    y = y - y.mean(1, keepdims=True)
    centred = x - x.mean(0)
    units = np.sqrt((centred**2).mean(0))
    z = centred / units
    covariance = z.T @ z / len(z)
    rho = fitted.shrinkage
    shrunk = (1 - rho) * covariance + rho * np.trace(covariance) / 4 * np.eye(4)
    weight = (np.linalg.solve(shrunk, z.T @ (y - y.mean(0)) / len(z))).T / units
    np.testing.assert_allclose(fitted.weight.numpy(), weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fitted.bias.numpy(), y.mean(0) - weight @ x.mean(0), rtol=1e-3)


def test_a_router_is_its_tensors():
    features, scores, _ = table()
    router = nearest_items(features, scores, k=3)
    again = NearestRouter.from_tensors(router.tensors())
    assert torch.equal(again.logits(features), router.logits(features))
    assert (again.experts, again.features, again.k) == (3, 6, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"k": torch.tensor([0])},
        {"k": torch.tensor([99])},
        {"scale": torch.ones(2)},
        {"scores": torch.ones(2, 3)},
        {"more": torch.ones(1)},
    ],
)
def test_tensors_of_no_such_router_are_refused(change):
    features, scores, _ = table()
    tensors = nearest_items(features, scores, k=3).tensors()
    with pytest.raises(MixtureError, match="no router's tensors"):
        NearestRouter.from_tensors({**tensors, **change})


@pytest.mark.parametrize(
    ("features", "scores", "k", "message"),
    [
        (torch.ones(3, 2), torch.ones(2, 2), None, "2 rows of scores for 3 items"),
        (torch.ones(0, 2), torch.ones(0, 2), None, "0 rows"),
        (torch.ones(3, 2), torch.full((3, 2), torch.nan), None, "NaN"),
        (torch.ones(3, 2), torch.ones(3, 2), 4, "k is 4; it must be from 1 to 3"),
    ],
)
def test_what_is_no_table_is_refused(features, scores, k, message):
    with pytest.raises(MixtureError, match=message):
        nearest_items(features, scores, k=k)


def test_experts_that_are_alike_on_every_item_get_equal_shares():
    features, _, _ = table()
    router = nearest_items(features, torch.ones(40, 2), k=4)
    assert torch.allclose(router.probabilities(features), torch.tensor(0.5).double())
