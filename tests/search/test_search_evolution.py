"""Evolution against closed forms, and against being disturbed."""

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from landscapes import BLOCKS, GOAL, Watch, answered, evolve, hill, near, objective, problem

from modelglue.errors import EvaluationError
from modelglue.search.executors.serial import Serial
from modelglue.search.knobs import Knob
from modelglue.search.problem import Dial, Dials, Trial, canonical, options_of
from modelglue.search.result import SearchResult
from modelglue.search.sampler import Cloud, Sampler
from modelglue.search.space import Space
from modelglue.search.trials import JournalledObjective

# Closed forms.


@pytest.mark.parametrize(("trials", "loss"), [(60, 2e-2), (120, 1e-3), (240, 1e-5)])
def test_the_best_of_four_weights_is_found(trials: int, loss: float) -> None:
    result = evolve(problem(GOAL, objective(near(GOAL))), trials=trials)
    assert result.score == near(GOAL)(result.coefficients)
    assert -result.score < loss
    assert sum(result.coefficients.values()) == pytest.approx(1)


def test_two_models_have_one_coordinate() -> None:
    result = evolve(problem("ab", objective(near({"a": 0.83}))), trials=60)
    assert result.coefficients["a"] == pytest.approx(0.83, abs=2e-3)


def test_what_changes_nothing_is_not_moved() -> None:
    asked: list[str] = []

    def score(coefficients: dict[str, float]) -> float:
        asked.extend(coefficients if len(coefficients) > 1 else ())
        return near({"a": 0.6, "b": 0.4})(coefficients)

    evolve(problem("abz", objective(score), dials=Dials(idle=("z",))), trials=30)
    assert set(asked) == {"a", "b"}


def test_every_group_finds_weights_of_its_own() -> None:
    goal = {"a [x]": 0.9, "b [x]": 0.1, "a [rest]": 0.3, "b [rest]": 0.7}
    dials = Dials(groups=("x", "rest"))
    result = evolve(problem("ab", objective(near(goal)), dials=dials), trials=150)
    assert {k: result.coefficients[k] for k in goal} == pytest.approx(goal, abs=0.02)


def test_a_curved_valley_is_followed_to_its_end() -> None:
    # Rosenbrock's, a tenth of its size so that the even start is outside it.
    def valley(coefficients: dict[str, float]) -> float:
        x, y = (10 * coefficients.get(name, 0.0) for name in "ab")
        return -(100 * (y - x * x) ** 2 + (1 - x) ** 2)

    dials = Dials(normalised=False, weight=0.0)
    result = evolve(problem("ab", objective(valley), dials=dials), trials=600)
    assert result.coefficients == pytest.approx({"a": 0.1, "b": 0.1}, abs=1e-3)


def test_densities_and_a_scale_are_found_within_their_ranges() -> None:
    dials = Dials(
        normalised=True,
        others=(
            Dial("density", 0.1, 1.0, 0.5, per_model=True),
            Dial("lambda", 0.0, 2.0, 1.0, per_model=False),
        ),
    )
    goal = {"a": 0.7, "density of a": 1.0, "density of b": 0.2, "lambda of *": 1.6}
    watch = Watch()
    result = evolve(problem("ab", objective(near(goal)), dials=dials, tell=watch), trials=300)
    assert {k: result.coefficients[k] for k in goal} == pytest.approx(goal, abs=0.05)
    for one in watch.tried:
        densities = [n for name, n in one.coefficients.items() if name.startswith("density")]
        assert all(0.1 <= density <= 1.0 for density in densities)


def test_t_is_searched_where_a_method_has_no_weights() -> None:
    dials = Dials(weighted=False, others=(Dial("t", 0.0, 1.0, 0.5, per_model=False),))
    result = evolve(problem("ab", objective(near({"t of *": 0.2})), dials=dials), trials=60)
    assert result.coefficients["t of *"] == pytest.approx(0.2, abs=5e-3)
    assert {Knob.parse(name).model for name in result.coefficients} == {"a", "b", "*"}


def test_the_end_of_a_range_is_reached() -> None:
    dials = Dials(weighted=False, others=(Dial("t", 0.0, 1.0, 0.5, per_model=False),))
    trying = objective(near({"t of *": 1.0}))
    result = evolve(problem("ab", trying, dials=dials), trials=80)
    assert result.coefficients["t of *"] == pytest.approx(1.0, abs=5e-3)
    assert result.trials == len(trying) <= 80


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_many_models_in_many_groups_still_gain(groups: int) -> None:
    names, labels = [f"m{i}" for i in range(16)], tuple(f"g{i}" for i in range(groups))
    draw = random.Random(0)
    goal = {}
    for label in labels:
        best = draw.sample(names, 3)
        goal |= {f"{n} [{label}]": 1 / 3 if n in best else 0.0 for n in names}
    dials = Dials(groups=labels)
    even = near(goal)(dict.fromkeys(names, 1 / 16))
    result = evolve(problem(names, objective(near(goal)), dials=dials), trials=400)
    assert result.score > {1: 0.1, 3: 0.25, 6: 0.4}[groups] * even


def test_a_method_without_anything_to_turn_is_tried_once() -> None:
    dials = Dials(weighted=False)
    result = evolve(problem("abc", objective(lambda c: len(c) / 3), dials=dials))
    assert (result.coefficients, result.trials) == (dict.fromkeys("abc", round(1 / 3, 12)), 4)


# What it is to end with.


def test_no_search_ends_below_the_best_single_model() -> None:
    def spiky(coefficients: dict[str, float]) -> float:
        return 1.0 if coefficients == {"c": 1.0} else near(GOAL)(coefficients)

    result = evolve(problem(GOAL, objective(spiky)), trials=60)
    assert (result.coefficients, result.score) == ({"c": 1.0}, 1.0)


def test_no_search_ends_below_the_even_mixture() -> None:
    even = dict.fromkeys(GOAL, 0.25)

    def spiky(coefficients: dict[str, float]) -> float:
        return 1.0 if coefficients == even else 0.0

    assert evolve(problem(GOAL, objective(spiky)), trials=20).coefficients == even


def test_of_equal_candidates_the_first_is_kept() -> None:
    result = evolve(problem("ba", objective(lambda coefficients: 0.5)), trials=40)
    assert result.coefficients == {"b": 1.0}


def test_one_model_is_its_own_best_merge() -> None:
    result = evolve(problem("a", objective(near(GOAL))))
    assert (result.coefficients, result.trials) == ({"a": 1.0}, 1)


@pytest.mark.parametrize("trials", [1, 5, 6, 7, 8, 20, 33])
def test_no_more_candidates_are_tried_than_allowed(trials: int) -> None:
    watch = Watch()
    trying = objective(near(GOAL))
    result = evolve(problem(GOAL, trying, tell=watch), trials=trials)
    # The single models and the even mixture are always looked at.
    assert result.trials == len(trying) == max(5, trials)
    assert len({json.dumps(one.coefficients) for one in watch.tried}) == result.trials


def test_where_only_two_can_be_merged_the_best_two_are() -> None:
    goal = {"a": 0.0, "b": 0.6, "c": 0.0, "d": 0.4}
    watch = Watch()
    evolve(problem(goal, objective(near(goal)), most=2, tell=watch), trials=40)
    assert {
        name for one in watch.tried if len(one.coefficients) > 1 for name in one.coefficients
    } == {"b", "d"}
    alone = evolve(problem(goal, objective(near(goal)), most=1))
    assert alone.coefficients == {"b": 1.0}


# Failures.


def fails_in_part(coefficients: dict[str, float]) -> float:
    """A third of the plane cannot be merged, the best places among it."""
    if len(coefficients) > 1 and coefficients.get("a", 0.0) > 0.45:
        return math.nan
    return near(GOAL)(coefficients)


def test_a_failed_candidate_is_reported_and_never_a_score() -> None:
    watch = Watch()
    result = evolve(problem(GOAL, objective(fails_in_part), tell=watch), trials=120)
    failed = [one for one in watch.tried if one.failure]
    assert failed
    assert all(one.failure == "the merge holds NaN" and not one.whole for one in failed)
    of_generations = sum(one.generation is not None for one in failed)
    assert sum(each.failed for each in result.generations) == of_generations > 0
    # The best that can be merged is at the border.
    assert result.coefficients["a"] == pytest.approx(0.45, abs=0.02)
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_race_goes_on_where_all_that_led_it_fail_in_the_end() -> None:
    def late(coefficients: Any, block: int | None) -> Trial:
        trial = answered(hill)(coefficients)
        if trial.scores is None or block is None:
            return trial
        fails = block == 3 and len(coefficients) > 1
        return Trial(None, "late") if fails else Trial(BLOCKS.part(trial.scores, block))

    trying = JournalledObjective(Serial(late), None, scope="", items=BLOCKS)
    result = evolve(problem(GOAL, trying), trials=40, racing="on", level=0.5)
    assert sum(each.stopped for each in result.generations) > 0
    assert sum(each.failed for each in result.generations) > 0
    assert result.trials == 40


def test_a_failed_candidate_is_told_as_the_worst() -> None:
    def moved(scores: Sequence[float]) -> list[float]:
        cloud = Cloud(
            Space(("a", "b", "c"), Dials()).start, 0.2, Space(tuple("abc"), Dials()).bounds
        )
        sampler = Sampler(cloud, 0)
        sampler.tell(sampler.ask(0), scores)
        return sampler.mean.tolist()

    scores = [0.1, 0.5, -math.inf, 0.3, 0.2, 0.4]
    assert moved(scores) == moved([0.1, 0.5, 0.01, 0.3, 0.2, 0.4])
    assert moved(scores) != moved([0.1, 0.5, 0.6, 0.3, 0.2, 0.4])


def test_where_every_merge_fails_the_best_single_model_is_left() -> None:
    def only_singles(coefficients: dict[str, float]) -> float:
        return math.nan if len(coefficients) > 1 else near(GOAL)(coefficients)

    result = evolve(problem(GOAL, objective(only_singles)), trials=60)
    assert result.coefficients == {"a": 1.0}
    assert all(each.best == -math.inf for each in result.generations)
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_where_no_model_can_be_scored_there_is_one_clear_error() -> None:
    with pytest.raises(EvaluationError, match=r"no model can be scored.*a: the merge holds NaN"):
        evolve(problem("ab", objective(lambda coefficients: math.nan)))


# Generations without a direction.


def test_on_a_plateau_it_starts_again_with_more_members_until_the_trials_are_used_up() -> None:
    result = evolve(problem("abc", objective(lambda coefficients: 0.5)), trials=100)
    assert result.trials == 100
    sizes = [each.candidates for each in result.generations]
    assert sizes[:4] == [6, 12, 24, 48]


def test_the_step_size_is_that_of_the_sampler_however_many_were_drawn() -> None:
    result = evolve(problem("abc", objective(near(GOAL))), trials=36, sigma=0.25, population=6)
    sizes = [each.candidates for each in result.generations]
    assert sizes == [6, 6, 6, 6, 6, 1]
    steps = [each.spread for each in result.generations]
    assert steps[0] == 0.25
    assert all(step > 0 for step in steps)


def test_an_island_in_a_plateau_is_found_by_starting_again() -> None:
    def island(coefficients: dict[str, float]) -> float:
        return max(0.0, 0.15 + near({"a": 0.65, "b": 0.35})(coefficients))

    result = evolve(problem("abc", objective(island)), trials=250)
    assert result.score == pytest.approx(0.15, abs=1e-3)


def test_a_cloud_that_has_met_its_own_criteria_has_ended() -> None:
    space = Space(("a", "b"), Dials())
    sampler = Sampler(Cloud(space.start, 1 / 6, space.bounds), 0)
    generation = 0
    while not sampler.ended and generation < 300:
        points = sampler.ask(generation)
        sampler.tell(points, [-float(point @ point) for point in points])
        generation += 1
    assert sampler.ended
    assert sampler.again().members == 2 * sampler.members
    assert not sampler.again().ended


# Options.


def test_every_option_has_a_default_within_its_range() -> None:
    for option in options_of("evolution").values():
        if option.default is not None and option.low is not None:
            assert option.low <= option.default <= (option.high or math.inf)
        assert not option.choices or option.default in option.choices


def test_candidates_are_spelled_canonically() -> None:
    watch = Watch()
    evolve(problem(GOAL, objective(near(GOAL)), tell=watch), trials=30)
    assert all(canonical(one.coefficients) == one.coefficients for one in watch.tried)
