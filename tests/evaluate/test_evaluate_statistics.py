import itertools
import math
import time
from statistics import NormalDist

import numpy as np
import pytest

from modelglue.errors import EvaluationError
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.evaluate.statistics import (
    Lead,
    looks_boundary,
    mean_interval,
    paired_comparison,
    paired_difference,
    paired_lead,
    paired_test,
    shrunken,
)


def scores_of(*columns: np.ndarray, groups: int = 0) -> Scores:
    return Scores(
        tuple(
            TaskScores(
                f"task{n}",
                tuple(f"i{k}" for k in range(len(column))),
                tuple(float(value) for value in column),
                tuple(f"g{k % groups}" for k in range(len(column))) if groups else (),
            )
            for n, column in enumerate(columns)
        )
    )


def test_the_interval_is_the_normal_one_where_items_are_many() -> None:
    values = np.random.default_rng(0).random(2000)
    found = mean_interval(scores_of(values), resamples=4000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.08)
    assert found.mean - found.low == pytest.approx(half, rel=0.08)


def test_pairing_takes_out_what_the_models_have_in_common() -> None:
    generator = np.random.default_rng(1)
    difficulty = generator.random(500)
    a, b = scores_of(difficulty + 0.01), scores_of(difficulty)
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(0.01)
    assert found.high - found.low < 1e-9
    assert mean_interval(a).high - mean_interval(a).low > 0.04


def test_items_of_one_group_count_as_one() -> None:
    """20 groups of 10 equal items know no more than 20 items."""
    values = (np.random.default_rng(2).random(20) < 0.5).astype(float)
    few = mean_interval(scores_of(values), resamples=8000)
    many = mean_interval(scores_of(np.tile(values, 10), groups=20), resamples=8000)
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    truth, hits, trials = 0.1, 0, 300
    for _ in range(trials):
        first = (generator.random((2, 60)) < 0.6).astype(float)
        second = (generator.random((2, 60)) < 0.5).astype(float)
        found = paired_difference(scores_of(*first), scores_of(*second), resamples=400)
        hits += found.low <= truth <= found.high
    # 95 % ± 3 standard errors of 300 trials, and a little for the percentile bootstrap.
    assert 0.91 <= hits / trials <= 0.985


def test_a_task_with_one_group_says_that_nothing_is_known() -> None:
    one = scores_of(np.array([1.0]))
    assert (mean_interval(one).low, mean_interval(one).high) == (0.0, 1.0)
    difference = paired_difference(one, scores_of(np.array([0.0])))
    assert (difference.mean, difference.low, difference.high) == (1.0, -1.0, 1.0)


def test_an_interval_of_two_groups_does_not_leave_what_is_possible() -> None:
    two = scores_of(np.array([1.0, 0.0]))
    found = mean_interval(two)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    difference = paired_difference(two, scores_of(np.array([0.0, 1.0])))
    assert (difference.mean, difference.low, difference.high) == (0.0, -1.0, 1.0)


def test_neither_the_order_of_tasks_nor_of_items_changes_an_interval() -> None:
    generator = np.random.default_rng(4)
    a = scores_of(*(generator.random((2, 50)) < 0.5))
    b = scores_of(*(generator.random((2, 50)) < 0.5))
    turned = Scores(
        tuple(
            TaskScores(task.task, task.items[::-1], task.values[::-1]) for task in reversed(b.tasks)
        )
    )
    assert paired_difference(a, b) == paired_difference(a, turned)
    assert paired_difference(b, a) == paired_difference(turned, a)


def test_another_seed_gives_another_interval_and_the_same_seed_the_same() -> None:
    a = scores_of(np.random.default_rng(5).random(40))
    assert mean_interval(a, seed=1) == mean_interval(a, seed=1)
    assert mean_interval(a, seed=1) != mean_interval(a, seed=2)


def test_models_scored_on_different_items_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match="different items of task0"):
        paired_difference(scores_of(np.zeros(3)), scores_of(np.zeros(4)))
    with pytest.raises(EvaluationError, match="scored on task1"):
        paired_difference(scores_of(np.zeros(3)), scores_of(np.zeros(3), np.zeros(3)))


def test_the_sign_flip_test_gives_the_binomial_tail() -> None:
    """Six groups, all better by the same: all flips but one in 2⁶ fall short."""
    better, worse = scores_of(np.ones(6)), scores_of(np.zeros(6))
    assert paired_test(better, worse, resamples=20_000) == pytest.approx(2**-6, rel=0.2)
    assert paired_test(worse, better) == 1.0


def test_the_test_rejects_a_true_null_as_often_as_it_says() -> None:
    generator = np.random.default_rng(6)
    rejected = 0
    for _ in range(300):
        draws = (generator.random((2, 40)) < 0.5).astype(float)
        rejected += paired_test(scores_of(draws[0]), scores_of(draws[1]), resamples=300) <= 0.05
    assert rejected / 300 <= 0.09


def drawn(seed: int, gain: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two models at two tasks of 12 and 10 items; few different scores, so that ties are many."""
    draw = np.random.default_rng(seed).random
    sizes = (12, 10)
    return [(draw(n) + gain).round(1) for n in sizes], [draw(n).round(1) for n in sizes]


@pytest.mark.parametrize("level", [0.01, 0.05, 0.3])
def test_the_interval_of_a_comparison_is_above_zero_where_its_test_says_better(
    level: float,
) -> None:
    accepted = 0
    for seed in range(40):
        mine, theirs = drawn(seed, 0.03 * (seed % 10))
        a, b = scores_of(*mine, groups=5), scores_of(*theirs, groups=5)
        interval, p = paired_comparison(a, b, level=level, resamples=300)
        assert p == paired_test(a, b, resamples=300)
        assert (interval.low > 0) == (p <= level)
        accepted += p <= level
    assert 0 < accepted < 40


def test_the_ends_of_a_comparison_are_what_the_test_only_just_allows() -> None:
    for seed in range(10):
        mine, theirs = drawn(seed, 0.1)
        b = scores_of(*theirs)
        interval, _ = paired_comparison(scores_of(*mine), b, level=0.05, resamples=400)
        assert -1 < interval.low <= interval.mean <= interval.high < 1
        for off, allowed in ((interval.low - 1e-6, False), (interval.low + 1e-6, True)):
            moved = scores_of(*(column - off for column in mine))
            assert (paired_test(moved, b, resamples=400) > 0.05) == allowed
        turned, _ = paired_comparison(b, scores_of(*mine), level=0.05, resamples=400)
        assert (-turned.high, -turned.low) == pytest.approx((interval.low, interval.high))


def test_a_comparison_of_too_few_groups_knows_no_end() -> None:
    interval, p = paired_comparison(scores_of(np.ones(3)), scores_of(np.zeros(3)), level=0.05)
    assert p == pytest.approx(1 / 8, rel=0.1)
    assert (interval.low, interval.high) == (-1, 1)


def test_an_interval_of_three_tasks_of_800_items_takes_no_time() -> None:
    generator = np.random.default_rng(7)
    a, b = (scores_of(*(generator.random((3, 800)) < 0.5)) for _ in range(2))
    started = time.process_time()
    paired_difference(a, b)
    assert time.process_time() - started < 1.0


def test_the_variance_of_a_lead_is_that_of_all_flips_of_signs() -> None:
    draw = np.random.default_rng(8).random
    a, b = scores_of(*draw((2, 12)), groups=4), scores_of(*draw((2, 12)), groups=4)
    groups = [
        [sum(x - y for x, y, g in zip(t.values, b[t.task].values, t.groups) if g == name) / 12 / 2
         for name in ("g0", "g1", "g2", "g3")]
        for t in a.tasks
    ]  # fmt: skip
    flips = [
        sum(s * d for s, d in zip(signs, itertools.chain(*groups)))
        for signs in itertools.product((-1, 1), repeat=8)
    ]
    lead = paired_lead(a, b)
    assert lead.mean == pytest.approx(a.mean - b.mean)
    assert lead.variance == pytest.approx(np.var(flips) * (1 + 1 / 8))


def test_a_few_groups_that_agree_are_no_surer_than_their_signs_say() -> None:
    """k of k lost and k still to be won, with half of the items seen: the chance is 2^−2k."""
    for count in range(2, 12):
        lead = paired_lead(scores_of(np.ones(count)), scores_of(np.zeros(count)))
        assert NormalDist().cdf(-lead.score(0.5)) >= 0.8 * 2.0 ** (-2 * count)


def test_a_lead_on_all_items_is_final_and_none_is_none() -> None:
    lead = Lead(0.01, 0.04)
    assert lead.score(0.0) == pytest.approx(0.05)
    assert lead.score(0.75) == pytest.approx(0.1)
    assert lead.score(1.0) == math.inf
    assert Lead(-0.01, 0.04).score(1.0) == -math.inf
    assert Lead(0.0, 0.0).score(1.0) == 0.0


def test_the_boundary_of_one_look_is_the_normal_quantile() -> None:
    for level in (0.001, 0.05, 0.3):
        quantile = NormalDist().inv_cdf(1 - level)
        assert looks_boundary(level, (0.5,)) == pytest.approx(quantile, abs=1e-6)


@pytest.mark.parametrize(("looks", "constant"), [(2, 2.178), (3, 2.289), (5, 2.413), (10, 2.555)])
def test_equally_informative_looks_have_the_boundaries_of_pococks_table(
    looks: int, constant: float
) -> None:
    """Two-sided 5 % there. Information goes by s / (1 − s): 1, 2, 3 … at shares k / (k + 1)."""
    shares = tuple(k / (k + 1) for k in range(1, looks + 1))
    assert looks_boundary(0.025, shares) == pytest.approx(constant, abs=1e-3)


def test_models_that_are_equal_on_all_items_cross_the_boundary_as_often_as_it_says() -> None:
    """Eight blocks of 300 items, as many lost as won, in random order."""
    generator = np.random.default_rng(9)
    shares = tuple(k / 8 for k in range(1, 8))
    boundary = looks_boundary(0.1, shares)
    differences = np.repeat([1.0, -1.0, 0.0], [40, 40, 220])
    crossed = 0
    for _ in range(2000):
        drawn = generator.permutation(differences)
        for share in shares:
            seen = drawn[: round(300 * share)]
            lead = Lead(seen.mean(), float((seen**2).sum()) / len(seen) ** 2)
            if lead.score(share) > boundary:
                crossed += 1
                break
    assert 0.07 <= crossed / 2000 <= 0.12


def test_looks_that_are_no_rising_shares_are_refused() -> None:
    for shares in ((), (0.5, 0.5), (0.6, 0.4), (0.5, 1.0)):
        with pytest.raises(ValueError, match="rising shares"):
            looks_boundary(0.1, shares)
    with pytest.raises(ValueError, match=r"level is 0\.7"):
        looks_boundary(0.7, (0.5,))


def test_means_are_drawn_together_as_the_closed_form_says() -> None:
    """Spread 0.02 beyond a doubt of 0.01: a third of the way."""
    others = [0.4, 0.6]
    means = [0.3, 0.7]
    total = float(np.var([*means, *others], ddof=1))
    doubt = 0.02
    spread = total - doubt / 2
    expected = [0.5 + spread / (spread + doubt) * (mean - 0.5) for mean in means]
    assert shrunken(means, [doubt, doubt], others=others) == pytest.approx(expected)


def test_what_is_known_exactly_stays_and_what_is_luck_alone_goes_to_the_centre() -> None:
    assert shrunken([0.2, 0.8], [0.0, 0.0]) == [0.2, 0.8]
    assert shrunken([0.4, 0.6], [1.0, 1.0]) == pytest.approx([0.5, 0.5])
    assert shrunken([0.4], [math.inf], others=[0.6, 0.8]) == pytest.approx([0.6])


def test_shrunken_means_err_less_than_the_means_themselves() -> None:
    generator = np.random.default_rng(10)
    truth = generator.normal(0.6, 0.03, (200, 8))
    doubts = np.tile([0.02, 0.05], 4)
    seen = truth + generator.normal(0, doubts, (200, 8))
    drawn = np.array([shrunken(row, doubts**2) for row in seen])
    assert ((drawn - truth) ** 2).mean() < 0.75 * ((seen - truth) ** 2).mean()
