"""Points and candidates: nothing is lost on the way, and no direction is dead."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelglue.search.knobs import Knob
from modelglue.search.problem import Dial, Dials
from modelglue.search.space import Space, sum_zero_basis

NAMES = tuple("abcdefg")
DENSITY = Dial("density", 0.1, 1.0, 0.5, per_model=True)
LAMBDA = Dial("lambda", 0.0, 2.0, 1.0, per_model=False)
T = Dial("t", 0.0, 1.0, 0.5, per_model=False)
GROUPS = ("layers 0-1", "layers 2-3", "rest")
ALL_DIALS = [
    Dials(),
    Dials(groups=GROUPS),
    Dials(others=(DENSITY,)),
    Dials(normalised=False, others=(DENSITY,), groups=GROUPS),
    Dials(normalised=False, weight=0.4),
    Dials(others=(LAMBDA,)),
    Dials(weighted=False, others=(T,)),
    Dials(weighted=False, others=(T,), groups=GROUPS),
]

spaces = st.builds(
    lambda n, dials: Space(NAMES[:n], dials), st.integers(2, 7), st.sampled_from(ALL_DIALS)
)


def points(space: Space, seed: int) -> np.ndarray:
    """One inside the bounds."""
    point = np.random.default_rng(seed).normal(0, 0.3, space.dimension)
    others = np.isfinite(space.bounds[:, 0])
    return np.where(others, 1 / (1 + np.exp(-point)), point)


def effective(space: Space, candidate: dict[str, float]) -> np.ndarray:
    """What the merge is made of: weights as a method that normalises takes them, and the rest."""
    knobs = {Knob.parse(name): number for name, number in candidate.items()}
    found = []
    for group in sorted({knob.group for knob in knobs}):
        weights = [n for k, n in knobs.items() if k.group == group and k.parameter == "weight"]
        total = sum(weights) if space.dials.normalised else 1
        found += [weight / total for weight in weights]
    return np.array(found + [n for k, n in knobs.items() if k.parameter != "weight"])


@given(spaces, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_no_direction_is_dead(space: Space, seed: int) -> None:
    point, step = points(space, seed), 1e-6
    columns = [
        effective(space, space.candidate(point + step * axis))
        - effective(space, space.candidate(point - step * axis))
        for axis in np.eye(space.dimension)
    ]
    jacobian = np.array(columns).T / (2 * step)
    assert np.linalg.matrix_rank(jacobian, tol=1e-3) == space.dimension


@given(spaces, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_point_comes_back_from_its_candidate(space: Space, seed: int) -> None:
    point = points(space, seed)
    assert space.point(space.candidate(point)) == pytest.approx(point, abs=1e-12)


@given(spaces)
@settings(max_examples=30, deadline=None)
def test_the_start_is_the_even_mixture(space: Space) -> None:
    candidate = space.candidate(space.start)
    weights = [n for name, n in candidate.items() if Knob.parse(name).parameter == "weight"]
    even = space.dials.weight or 1 / len(space.names)
    assert weights == pytest.approx([even] * len(weights))
    for dial in space.dials.others:
        turned = [n for name, n in candidate.items() if Knob.parse(name).parameter == dial.name]
        assert turned == pytest.approx([dial.start] * len(turned))
        assert turned


@given(st.integers(2, 12), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_normalised_weights_sum_to_one_and_distances_keep_their_ratios(n: int, seed: int) -> None:
    space = Space(tuple(f"m{i}" for i in range(n)), Dials())
    x, y = (points(space, seed + i) for i in range(2))
    a, b = (np.array(list(space.candidate(point).values())) for point in (x, y))
    assert a.sum() == pytest.approx(1)
    assert np.linalg.norm(a - b) == pytest.approx(np.linalg.norm(x - y) / math.sqrt(n - 1))


@pytest.mark.parametrize("dials", [Dials(), Dials(normalised=False), Dials(groups=GROUPS)])
@pytest.mark.parametrize("n", [2, 5, 16])
def test_a_step_in_every_coordinate_moves_each_mixture_alike(n: int, dials: Dials) -> None:
    space = Space(tuple(f"m{i}" for i in range(n)), dials)
    start, moved = (space.candidate(space.start + step) for step in (0, 1 / 6))
    change = np.array([moved[name] - start[name] for name in start])
    groups = max(1, len(dials.groups))
    assert np.linalg.norm(change) == pytest.approx(math.sqrt(groups) / 6)


@pytest.mark.parametrize("n", [1, 2, 3, 16])
def test_no_model_is_preferred_to_another(n: int) -> None:
    # A round cloud in the coordinates has this covariance in the weights; it is the only one that
    # no permutation changes and that leaves the sum alone.
    basis = sum_zero_basis(n)
    assert basis @ basis.T == pytest.approx(np.eye(n) - 1 / n)


@given(st.permutations(range(5)), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_another_order_of_the_models_is_a_rotation(order: list[int], seed: int) -> None:
    space = Space(NAMES[:5], Dials())
    turned = Space(tuple(NAMES[i] for i in order), Dials())
    x, y = points(space, seed), points(space, seed + 1)
    to = [turned.point(space.candidate(point)) for point in (x, y)]
    assert turned.candidate(to[0]) == pytest.approx(space.candidate(x))
    assert to[0] @ to[1] == pytest.approx(x @ y)


def test_a_plain_candidate_holds_in_all_groups_and_who_is_missing_weighs_nothing() -> None:
    space = Space(("a", "b", "c"), Dials(groups=GROUPS))
    candidate = space.candidate(space.point({"a": 0.75, "b": 0.25}))
    for group in GROUPS:
        found = [candidate[str(Knob(name, group))] for name in "abc"]
        assert found == pytest.approx([0.75, 0.25, 0])


def test_weights_are_normalised_where_only_their_ratios_matter() -> None:
    space = Space(("a", "b"), Dials())
    assert space.candidate(space.point({"a": 3, "b": 1})) == pytest.approx({"a": 0.75, "b": 0.25})
    assert space.candidate(space.point({"a": 1, "b": -1})) == pytest.approx({"a": 0.5, "b": 0.5})


def test_numbers_of_other_groups_come_as_their_mean() -> None:
    plain = Space(("a", "b"), Dials())
    grouped = {"a [x]": 0.2, "b [x]": 0.8, "a [y]": 0.6, "b [y]": 0.4}
    assert plain.candidate(plain.point(grouped)) == pytest.approx({"a": 0.4, "b": 0.6})


def test_a_missing_parameter_starts_where_its_dial_does_and_none_leaves_its_range() -> None:
    space = Space(("a", "b"), Dials(others=(DENSITY, LAMBDA)))
    candidate = space.candidate(space.point({"a": 1.0, "density of b": 7.0}))
    assert candidate["density of a"] == pytest.approx(0.5)
    assert candidate["density of b"] == pytest.approx(1.0)
    assert candidate["lambda of *"] == pytest.approx(1.0)
    low, high = space.bounds.T
    ends = (
        space.candidate(np.where(np.isfinite(low), low, 0)),
        space.candidate(np.where(np.isfinite(high), high, 0)),
    )
    assert [end["density of a"] for end in ends] == pytest.approx([0.1, 1.0])
    assert [end["lambda of *"] for end in ends] == pytest.approx([0.0, 2.0])


def test_slerp_starts_from_the_share_of_the_second_model() -> None:
    space = Space(("a", "b"), Dials(weighted=False, others=(T,), groups=("x", "rest")))
    candidate = space.candidate(space.point({"a": 0.3, "b": 0.7}))
    assert candidate == pytest.approx({"a": 0.5, "b": 0.5, "t of * [x]": 0.7, "t of * [rest]": 0.7})


def test_the_dimension_counts_what_can_be_turned() -> None:
    assert Space(NAMES[:4], Dials()).dimension == 3
    assert Space(NAMES[:4], Dials(groups=GROUPS)).dimension == 9
    assert Space(NAMES[:4], Dials(normalised=False, others=(DENSITY, LAMBDA))).dimension == 9
    assert Space(NAMES[:1], Dials()).dimension == 0
    assert Space(NAMES[:2], Dials(weighted=False)).dimension == 0
    assert not math.isfinite(Space(NAMES[:2], Dials()).bounds[0, 0])
