"""Scores on all items from a few: against simulated answers whose curves are known."""

import math

import numpy as np
import pytest
from simulated_answers import ITEMS, TASKS, World, errors, rms, scores_of

from modelglue.errors import EvaluationError
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.search.irt import estimator, fit, shares_of
from modelglue.search.problem import Trial


def test_a_fifth_of_the_items_says_more_with_curves_than_without() -> None:
    mine, plain = [], []
    for seed in range(5):
        found = errors(World(seed), 30, 0.2)
        mine, plain = mine + found[0], plain + found[1]
    assert rms(mine) < 0.8 * rms(plain)
    assert abs(np.mean(mine)) < 0.01


def test_the_order_of_items_and_of_models_is_recovered() -> None:
    world = World(0, models=16)
    for number, curves in enumerate(fit(world.singles)):
        found = [curves.abilities[f"m{n}"] for n in range(16)]
        assert np.corrcoef(found, world.abilities[:, number])[0, 1] > 0.95
        assert np.corrcoef(curves.difficulty, world.difficulty[number])[0, 1] > 0.75


def test_chances_rise_with_ability_at_every_item() -> None:
    for curves in fit(World(1, models=3).singles):
        chances = np.array([curves.chances(ability) for ability in np.linspace(-3, 3, 13)])
        assert (np.diff(chances, axis=0) > 0).all()


def test_one_more_right_answer_never_lowers_an_estimate() -> None:
    world = World(2)
    estimate = estimator(world.singles)
    coefficients, answers = world.candidate()
    at = world.some(0.2)
    for item in at[0][:20]:
        wrong, right = answers.copy(), answers.copy()
        wrong[0, item], right[0, item] = 0.0, 1.0
        low, high = (estimate(coefficients, Trial(scores_of(a, at))) for a in (wrong, right))
        assert low < high


def test_items_that_all_or_no_model_answers_have_curves_too() -> None:
    world = World(3, models=4)
    columns = {
        name: np.array([task.values for task in scores.tasks])
        for name, scores in world.singles.items()
    }
    for column in columns.values():
        column[:, :50], column[:, 50:100] = 1.0, 0.0
    singles = {name: scores_of(column) for name, column in columns.items()}
    for curves in fit(singles):
        assert np.isfinite(curves.discrimination).all()
        assert np.isfinite(curves.difficulty).all()
        easy, hard = curves.chances(0.0)[:50], curves.chances(0.0)[50:100]
        assert easy.min() > 0.7
        assert hard.max() < 0.3
    everything = {name: scores_of(np.full((TASKS, ITEMS), 1.0)) for name in columns}
    guess = estimator(everything)({"m0": 1.0}, Trial(scores_of(np.ones((1, 20)))))
    assert 0.9 < guess <= 1.0


def test_one_single_model_is_enough_to_begin_with() -> None:
    mine, plain = errors(World(4, models=1), 30, 0.2)
    assert rms(mine) <= rms(plain)


def test_scores_between_0_and_1_are_shares_of_a_right_answer() -> None:
    """A candidate halfway between two models scores halfway between them."""
    draw = np.random.default_rng(5)
    ease = draw.uniform(0.2, 0.6, (1, 300))
    singles = {"m0": scores_of(ease), "m1": scores_of(ease + 0.2)}
    at = draw.permutation(300)[None, :40]
    guess = estimator(singles)({"m0": 0.5, "m1": 0.5}, Trial(scores_of(ease + 0.1, at)))
    assert guess == pytest.approx(float(ease.mean()) + 0.1, abs=0.01)


def test_with_all_items_seen_nothing_is_guessed() -> None:
    world = World(6)
    coefficients, answers = world.candidate()
    found = estimator(world.singles)(coefficients, Trial(scores_of(answers)))
    assert found == pytest.approx(answers.mean(), abs=1e-12)


def test_with_no_item_seen_a_single_model_is_guessed_to_be_itself() -> None:
    world = World(7, models=8)
    estimate = estimator(world.singles)
    for name, scores in world.singles.items():
        seen = Scores((TaskScores("elsewhere", ("i",), (0.0,)),))
        assert estimate({name: 1.0}, Trial(seen)) == pytest.approx(scores.mean, abs=0.03)


def test_a_task_that_was_not_seen_is_told_by_the_mixture_that_the_others_show() -> None:
    """Seen at two tasks as good as its better parent, it is guessed to be so at the third."""
    world = World(8, models=2)
    world.abilities = np.array([[-1.5] * TASKS, [1.5] * TASKS])
    singles = {f"m{n}": scores_of(world.answers(a)) for n, a in enumerate(world.abilities)}
    strong, weak = (scores_of(world.answers(np.full(TASKS, a))).tasks[:2] for a in (1.5, -1.5))
    estimate = estimator(singles)
    even = {"m0": 0.5, "m1": 0.5}
    unseen = [
        3 * estimate(even, Trial(Scores(seen))) - sum(task.mean for task in seen)
        for seen in (weak, strong)
    ]
    assert unseen[1] - unseen[0] > 0.2


def test_a_failed_trial_has_no_estimate() -> None:
    assert estimator(World(9, models=2).singles)({"m0": 1.0}, Trial(None, "NaN")) == -math.inf


def test_what_the_coefficients_say_of_the_models() -> None:
    models = ("a", "b")
    assert shares_of({"a": 3.0, "b": 1.0}, models).tolist() == [0.75, 0.25]
    assert shares_of({"a": 1.0, "b": -0.25}, models).tolist() == pytest.approx([4 / 3, -1 / 3])
    assert shares_of({"a": 0.5, "b": -0.49}, models).tolist() == [0.5, 0.5]  # it says nothing
    assert shares_of({"place 0 of a [layer 0]": 1.0, "place 1 of a [layer 1]": 0.3}, models)[0] == 1
    assert shares_of({"t of *": 0.9}, models).tolist() == [0.5, 0.5]
    between = {"a": 0.5, "b": 0.5}
    assert shares_of({**between, "t of *": 0.75}, models).tolist() == [0.25, 0.75]
    assert shares_of({**between, "t of *": 0.75}, ("b", "a")).tolist() == [0.25, 0.75]
    apart = {**between, "t of * [layers 0-1]": 1.0, "t of * [rest]": 0.5}
    assert shares_of(apart, models).tolist() == [0.25, 0.75]
    assert shares_of({"density of a": 0.5, "a": 1.0, "stranger": 2.0}, models).tolist() == [
        1.0,
        0.0,
    ]


def test_scores_of_other_items_are_refused() -> None:
    world = World(10, models=2)
    short = {"m0": world.singles["m0"], "m1": scores_of(np.ones((TASKS, 10)))}
    with pytest.raises(EvaluationError, match="m1 was scored on other items of task0"):
        fit(short)
    with pytest.raises(EvaluationError, match="no single model"):
        fit({})
    stranger = Scores((TaskScores("task0", ("new",), (1.0,)),))
    with pytest.raises(EvaluationError, match="no model was scored on new"):
        estimator(world.singles)({"m0": 1.0}, Trial(stranger))
