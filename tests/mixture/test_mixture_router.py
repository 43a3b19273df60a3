"""Routers from closed forms, against the formulas written out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelglue.errors import MixtureError, UnknownName
from modelglue.mixture.router import (
    LinearRouter,
    MLPRouter,
    from_tensors,
    widened,
    without_bias,
)
from modelglue.mixture.router_prompts import (
    INITIALISATIONS,
    discriminant,
    from_prompts,
    ledoit_wolf,
    mean_difference,
)
from modelglue.mixture.router_validation import cross_validate


def groups_about(means, count, *, seed=0, scale=None):
    """For each mean [features] `count` points about it; features vary by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    width = means.shape[1]
    spread = torch.ones(width) if scale is None else scale
    return [
        mean + torch.randn(count, width, generator=generator, dtype=torch.double) * spread
        for mean in means.double()
    ]


def means_of(experts, width, *, seed=1, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(experts, width, generator=generator) * size


def naive_ledoit_wolf(data):
    """The sums of the 2004 paper, one outer product at a time."""
    count, width = data.shape
    covariance = data.T @ data / count
    sphere = np.trace(covariance) / width * np.eye(width)
    delta = ((covariance - sphere) ** 2).sum()
    beta = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in data) / count**2
    return min(1.0, beta / delta)


@pytest.mark.parametrize(("count", "width"), [(50, 6), (12, 30), (7, 7)])
def test_the_shrinkage_is_the_papers(count, width):
    data = groups_about(torch.zeros(1, width), count, scale=torch.linspace(0.2, 3, width))[0]
    data = data - data.mean(dim=0)
    assert ledoit_wolf(data) == pytest.approx(naive_ledoit_wolf(data.numpy()), rel=1e-9)


def naive_covariance(groups, shrunk):
    """Standard deviations about a shrunk correlation matrix, all of them p x p."""
    stacked = np.concatenate([group.numpy() - group.numpy().mean(0) for group in groups])
    covariance = stacked.T @ stacked / len(stacked)
    deviations = np.diag(np.sqrt(np.diag(covariance)))
    correlations = np.linalg.inv(deviations) @ covariance @ np.linalg.inv(deviations)
    assert shrunk == pytest.approx(naive_ledoit_wolf(stacked @ np.linalg.inv(deviations)))
    return (
        deviations @ ((1 - shrunk) * correlations + shrunk * np.eye(len(deviations))) @ deviations
    )


def log_density(x, group, covariance):
    apart = x - group.numpy().mean(0)
    return -0.5 * apart @ np.linalg.solve(covariance, apart)


@pytest.mark.parametrize(("count", "width"), [(60, 5), (9, 20)])
def test_discriminant_logits_differ_as_the_gaussians_log_densities(count, width):
    groups = groups_about(means_of(3, width), count, scale=torch.linspace(0.5, 2, width))
    router = discriminant(groups, [None] * 3)
    covariance = naive_covariance(groups, router.shrinkage)
    points = groups_about(means_of(3, width), 4, seed=5)[0].numpy()
    densities = np.array([[log_density(x, g, covariance) for g in groups] for x in points])
    logits = router.logits(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(
        logits - logits[:, :1], densities - densities[:, :1], rtol=1e-4, atol=1e-4
    )


def test_discriminant_with_negatives_is_the_ratio_of_two_gaussians():
    positives = groups_about(means_of(2, 4), 30)
    negatives = groups_about(means_of(2, 4, seed=9), 30, seed=3)
    router = discriminant(positives, negatives)
    covariance = naive_covariance([*positives, *negatives], router.shrinkage)
    x = np.linspace(-1, 1, 4)
    ratios = [
        log_density(x, own, covariance) - log_density(x, other, covariance)
        for own, other in zip(positives, negatives, strict=True)
    ]
    logits = router.logits(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(logits, ratios, rtol=1e-5, atol=1e-5)


def test_mean_difference_rows_are_unit_vectors_away_from_the_other_experts():
    groups = groups_about(means_of(3, 5), 20)
    router = mean_difference(groups, [None] * 3)
    for i, group in enumerate(groups):
        others = torch.cat([other for j, other in enumerate(groups) if j != i])
        difference = group.mean(dim=0) - others.mean(dim=0)
        torch.testing.assert_close(router.weight[i], (difference / difference.norm()).float())
    assert not router.bias.any()


def test_mean_difference_takes_the_negatives_that_were_given():
    positives = groups_about(means_of(2, 5), 8)
    negative = groups_about(means_of(1, 5, seed=4), 8)[0]
    router = mean_difference(positives, [negative, None])
    difference = positives[0].mean(dim=0) - negative.mean(dim=0)
    torch.testing.assert_close(router.weight[0], (difference / difference.norm()).float())


# A random router's rows are drawn in order, whoever the experts are.
CLOSED = {name: made for name, made in INITIALISATIONS.items() if name != "random"}


@pytest.mark.parametrize("initialise", CLOSED.values(), ids=CLOSED)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
def test_permuting_experts_permutes_logits(initialise, seed, order):
    groups = groups_about(means_of(4, 6, seed=seed), 9, seed=seed)
    points = groups_about(means_of(4, 6, seed=seed), 3, seed=seed + 1)[0]
    straight = initialise(groups, [None] * 4).logits(points)
    permuted = initialise([groups[i] for i in order], [None] * 4).logits(points)
    torch.testing.assert_close(permuted, straight[:, order], rtol=1e-4, atol=1e-4)
    wide = widened(initialise([groups[i] for i in order], [None] * 4)).logits(points)
    torch.testing.assert_close(wide, straight[:, order], rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_discriminant_logits_do_not_depend_on_the_features_origin_and_units(seed):
    groups = groups_about(means_of(3, 5, seed=seed), 10, seed=seed)
    shift = means_of(1, 5, seed=seed + 7)[0].double()
    units = torch.tensor([1e-3, 0.1, 1.0, 10.0, 1e3], dtype=torch.double)
    straight = discriminant(groups, [None] * 3).logits(groups[0])
    moved = [(group + shift) * units for group in groups]
    torch.testing.assert_close(
        discriminant(moved, [None] * 3).logits(moved[0]), straight, rtol=1e-3, atol=1e-3
    )


def test_discriminant_does_not_favour_the_expert_with_more_prompts():
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    few, _ = groups_about(means, 20)
    many = groups_about(means, 2000, seed=1)[1]
    router = discriminant([few, many], [None, None])
    held_out = groups_about(means, 500, seed=2)[0]
    assert (router.logits(held_out).argmax(dim=1) == 0).double().mean() > 0.75


def test_discriminant_heeds_that_one_feature_varies_more_than_the_other():
    means = torch.tensor([[1.0, 5.0], [0.0, 0.0]])
    scale = torch.tensor([0.1, 30.0])
    groups = groups_about(means, 100, scale=scale)
    held_out = groups_about(means, 100, scale=scale, seed=4)

    def accuracy(router):
        right = [router.logits(g).argmax(dim=1) == i for i, g in enumerate(held_out)]
        return float(torch.cat(right).double().mean())

    assert accuracy(discriminant(groups, [None] * 2)) > 0.99
    assert accuracy(mean_difference(groups, [None] * 2)) < 0.8


def test_one_prompt_an_expert_gives_the_nearest():
    groups = [torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])]
    router = discriminant(groups, [None] * 3)
    points = torch.tensor([[0.9, 0.0], [1.1, 0.0], [0.0, 2.6], [0.0, 2.4]])
    assert router.logits(points).argmax(dim=1).tolist() == [0, 1, 2, 0]


def test_fewer_prompts_than_features_are_enough():
    groups = groups_about(means_of(2, 400, size=0.5), 10)
    held_out = groups_about(means_of(2, 400, size=0.5), 50, seed=6)
    router = discriminant(groups, [None] * 2)
    right = [router.logits(g).argmax(dim=1) == i for i, g in enumerate(held_out)]
    assert torch.cat(right).double().mean() > 0.95


@pytest.mark.parametrize("initialise", INITIALISATIONS.values(), ids=INITIALISATIONS)
def test_a_single_expert_gets_everything(initialise):
    router = initialise(groups_about(means_of(1, 4), 5), [None])
    assert router.probabilities(torch.ones(2, 4)).tolist() == [[1.0], [1.0]]
    assert router.condition == 1.0


def test_condition_is_one_for_experts_evenly_apart():
    assert LinearRouter(torch.eye(3), torch.zeros(3)).condition == pytest.approx(1.0)


def test_condition_is_infinite_where_two_experts_look_the_same():
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert LinearRouter(weight, torch.zeros(3)).condition == float("inf")


def test_cross_validation_counts_what_a_router_made_without_the_fold_does():
    groups = groups_about(means_of(3, 4), 11)
    validation = cross_validate(discriminant, groups, [None] * 3)
    counts = np.zeros((3, 3), dtype=int)
    for fold in range(5):
        kept = [group[[i for i in range(11) if i % 5 != fold]] for group in groups]
        router = discriminant(kept, [None] * 3)
        for expert, group in enumerate(groups):
            for i in range(fold, 11, 5):
                counts[expert, int(router.logits(group[i : i + 1]).argmax())] += 1
    assert validation.counts == tuple(map(tuple, counts.tolist()))
    assert validation.accuracy == pytest.approx(np.trace(counts) / 33)


def test_cross_validation_does_not_flatter_where_there_is_nothing_to_learn():
    groups = groups_about(torch.zeros(2, 50), 60)
    validation = cross_validate(discriminant, groups, [None] * 2)
    assert 0.3 < validation.accuracy < 0.7
    assert abs(validation.margin) < 2


@pytest.mark.parametrize("counts", [[1, 5], [5]], ids=["one prompt", "one expert"])
def test_cross_validation_says_nothing_where_nothing_can_be_held_out(counts):
    groups = [torch.ones(count, 3) for count in counts]
    assert cross_validate(discriminant, groups, [None] * len(counts)) is None


def test_an_expert_without_prompts_is_refused():
    with pytest.raises(MixtureError, match="expert 1 has no prompts"):
        from_prompts([torch.ones(2, 3), torch.empty(0, 3)])


def test_a_feature_that_is_not_finite_is_refused():
    with pytest.raises(MixtureError, match=r"expert 0.*NaN"):
        from_prompts([torch.full((1, 3), torch.nan), torch.ones(1, 3)])


ROUTERS = {
    "linear": lambda groups: from_prompts(groups),
    "mlp": lambda groups: widened(from_prompts(groups)),
    "trained mlp": lambda groups: drawn_mlp(len(groups), groups[0].shape[1]),
}


def drawn_mlp(experts, features, hidden=7):
    generator = torch.Generator().manual_seed(3)
    shapes = ((hidden, features), (hidden,), (experts, hidden), (experts,))
    return MLPRouter(*(torch.randn(*shape, generator=generator) for shape in shapes))


@pytest.mark.parametrize("hidden", [None, 6, 40])
@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_an_mlp_router_begins_as_the_linear_one(initialisation, hidden):
    groups = groups_about(means_of(3, 8), 10)
    linear = from_prompts(groups, initialisation=initialisation)
    points = groups_about(means_of(3, 8), 20, seed=4)[0] * 10
    torch.testing.assert_close(
        widened(linear, hidden=hidden).logits(points), linear.logits(points), rtol=1e-9, atol=1e-9
    )


def test_an_mlp_router_has_units_that_training_can_use():
    linear = from_prompts(groups_about(means_of(3, 8), 10))
    mlp = widened(linear, hidden=20)
    unused = mlp.weight1[6:]
    assert mlp.weight1.shape == (20, 8)
    assert (unused.norm(dim=1) > 0).all()
    assert not mlp.weight2[:, 6:].any()
    with pytest.raises(MixtureError, match="over 3 experts needs 6 hidden units"):
        widened(linear, hidden=5)


def test_an_mlp_routers_logits_are_those_of_the_layers_written_out():
    router = drawn_mlp(3, 5)
    layers = torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3)
    ).double()
    layers.load_state_dict({name: t.double() for name, t in router.tensors().items()})
    points = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(router.logits(points), layers(points.double()))


@pytest.mark.parametrize("made", ROUTERS.values(), ids=ROUTERS)
def test_a_router_is_its_tensors(made):
    router = made(groups_about(means_of(3, 5), 9))
    points = groups_about(means_of(3, 5), 4, seed=8)[0]
    again = from_tensors(router.tensors())
    assert type(again) is type(router)
    assert torch.equal(again.logits(points), router.logits(points))
    assert (router.experts, router.features) == (3, 5)
    assert again.condition == router.condition


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": torch.zeros(3, 4)},
        {"weight": torch.zeros(3, 4), "bias": torch.zeros(2)},
        {"weight": torch.zeros(3), "bias": torch.zeros(3)},
        {
            "0.weight": torch.zeros(6, 4),
            "0.bias": torch.zeros(6),
            "2.weight": torch.zeros(3, 5),
            "2.bias": torch.zeros(3),
        },
    ],
)
def test_tensors_of_no_router_are_refused(tensors):
    with pytest.raises(MixtureError, match="no router's tensors"):
        from_tensors(tensors)


@pytest.mark.parametrize("made", ROUTERS.values(), ids=ROUTERS)
def test_a_prompts_logits_do_not_depend_on_those_beside_it(made):
    router = made(groups_about(means_of(3, 5), 9))
    points = groups_about(means_of(3, 5), 6, seed=8)[0]
    alone = torch.cat([router.logits(point[None]) for point in points])
    torch.testing.assert_close(router.logits(points), alone, rtol=1e-12, atol=1e-12)


def test_an_mlp_is_as_well_conditioned_as_the_linear_router_that_it_begins_as():
    linear = from_prompts(groups_about(means_of(4, 6), 12))
    assert widened(linear, hidden=8).condition == pytest.approx(linear.condition, rel=1e-5)
    same = LinearRouter(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.zeros(3))
    assert widened(same, hidden=6).condition == float("inf")


def test_nearest_mean_goes_to_the_mean_that_is_nearest_in_the_features_own_units():
    scale = torch.tensor([0.1, 10.0, 1.0])
    groups = groups_about(means_of(3, 3) * scale, 40, scale=scale)
    router = from_prompts(groups, initialisation="nearest_mean")
    means = np.stack([group.numpy().mean(0) for group in groups])
    spread = np.concatenate([g.numpy() - g.numpy().mean(0) for g in groups])
    units = np.sqrt((spread**2).mean(0))
    points = torch.cat(groups_about(means_of(3, 3, seed=7) * scale, 30, seed=2, scale=scale))
    distances = (((points.numpy()[:, None] - means) / units) ** 2).sum(-1)
    logits = router.logits(points).numpy()
    np.testing.assert_allclose(
        logits - logits[:, :1], -0.5 * (distances - distances[:, :1]), rtol=1e-4, atol=1e-3
    )


def test_a_random_router_is_its_seeds_and_as_loud_as_any():
    groups = groups_about(means_of(3, 50, size=5.0), 60)
    one, same, other = (
        from_prompts(groups, initialisation="random", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.weight, same.weight)
    assert not torch.allclose(one.weight, other.weight)
    logits = one.logits(torch.cat(groups))
    torch.testing.assert_close(logits.mean(dim=0), torch.zeros(3).double(), atol=1e-3, rtol=0)
    assert 0.2 < float(logits.std(dim=0).mean()) < 5


def test_a_bias_goes_into_the_weights_where_features_share_a_direction():
    means = means_of(3, 40) + 5.0  # as hidden states do
    groups = groups_about(means, 200)
    linear = from_prompts(groups)
    bare = without_bias(linear, torch.cat(groups))
    assert not bare.bias.any()
    held_out = torch.cat(groups_about(means, 100, seed=5))
    agree = bare.logits(held_out).argmax(dim=1) == linear.logits(held_out).argmax(dim=1)
    assert agree.double().mean() > 0.97
    assert without_bias(bare, torch.cat(groups)) is bare


@pytest.mark.parametrize(("count", "width"), [(50, 6), (6, 50)])
def test_the_direction_of_the_bias_is_the_least_squares_one(count, width):
    data = groups_about(means_of(1, width) + 1.0, count)[0]
    linear = LinearRouter(torch.zeros(2, width), torch.tensor([1.0, -2.0]))
    found = without_bias(linear, data).weight[0].double().numpy()
    expected, *_ = np.linalg.lstsq(data.numpy(), np.ones(count), rcond=None)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_a_misspelled_initialisation_is_named():
    with pytest.raises(UnknownName, match='did you mean "discriminant"'):
        from_prompts([torch.ones(2, 3)], initialisation="discriminent")
