import math
import time

import numpy as np
import pytest

from modelglue.errors import EvaluationError
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.evaluate.statistics import mean_interval, paired_difference, paired_test


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


def test_an_interval_of_three_tasks_of_800_items_takes_no_time() -> None:
    generator = np.random.default_rng(7)
    a, b = (scores_of(*(generator.random((3, 800)) < 0.5)) for _ in range(2))
    started = time.process_time()
    paired_difference(a, b)
    assert time.process_time() - started < 1.0
