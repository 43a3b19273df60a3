"""Evolution with fewer trials, from a warm start, and with fewer items."""

from typing import Any

import numpy as np
import pytest
from landscapes import (
    GOAL,
    ITEMS,
    Watch,
    answered,
    evolve,
    hill,
    near,
    objective,
    of_items,
    problem,
)
from simulated import climb

from modelglue.errors import ConfigError
from modelglue.search.evolution import Plan
from modelglue.search.problem import (
    SearchResult,
    search,
)

# Warm starts.


def test_a_warm_start_needs_fewer_trials() -> None:
    names = [f"m{i}" for i in range(8)]
    goal = dict(zip(names, [0.41, 0.33, 0.26, 0.0, 0.0, 0.0, 0.0, 0.0]))
    plain = evolve(problem(names, objective(near(goal))), trials=200)
    trying = objective(near(goal))
    warm = evolve(problem(names, trying), trials=100, warm_start="heuristic_average")
    assert warm.score >= plain.score
    assert warm.trials == len(trying) == 100


def test_from_a_warm_start_half_of_the_trials_climb_as_high_among_noisy_scores() -> None:
    plain = [climb(seed, {}) for seed in range(8)]
    warm = [climb(seed, {"warm_start": "heuristic_average"}) for seed in range(8)]
    assert {len(each) for each in (*plain, *warm)} == {60}
    assert np.mean(warm, axis=0)[29] >= np.mean(plain, axis=0)[59]


def test_a_result_that_stands_is_not_searched_again() -> None:
    trying = objective(near(GOAL))
    before = search("heuristic_coefficient", problem(GOAL, trying))
    results = {"heuristic_coefficient": before}
    warm = evolve(
        problem(GOAL, trying, results=results), trials=50, warm_start="heuristic_coefficient"
    )
    again = evolve(
        problem(GOAL, objective(near(GOAL))), trials=50, warm_start="heuristic_coefficient"
    )
    assert warm == again
    assert warm.trials == 50
    assert warm.score >= before.score


def test_a_warm_start_that_uses_up_the_trials_is_the_result() -> None:
    before = search("heuristic_coefficient", problem(GOAL, objective(near(GOAL))))
    result = evolve(
        problem(GOAL, objective(near(GOAL))), trials=10, warm_start="heuristic_coefficient"
    )
    assert (result.coefficients, result.trials) == (before.coefficients, before.trials)
    assert result.generations == ()


def test_layers_in_another_order_are_no_warm_start() -> None:
    path = SearchResult("data_flow", {"place 0 of a [layer 1]": 1.0}, 0.5, (), 3)
    with pytest.raises(ConfigError, match="reorders layers"):
        evolve(problem("ab", objective(near(GOAL)), results={"x": path}), warm_start="x")


# Fewer items.


@pytest.mark.parametrize(
    "options",
    [{}, {"racing": "on"}, {"stages": 3}, {"racing": "on", "stages": 2}, {"proxy": "irt"}],
    ids=str,
)
def test_what_is_returned_was_scored_on_all_items(options: dict[str, Any]) -> None:
    watch = Watch()
    result = evolve(problem(GOAL, of_items(hill), tell=watch), trials=60, **options)
    assert result.score == answered(hill)(result.coefficients).mean
    (best,) = {
        one.value for one in watch.tried if one.whole and one.coefficients == result.coefficients
    }
    assert best == result.score == max(one.value for one in watch.tried if one.whole)
    assert result.trials == 60


def test_racing_staging_and_estimating_take_fewer_items() -> None:
    def items(**options: Any) -> int:
        trying = of_items(hill)
        return evolve(problem(GOAL, trying), trials=80, **options).items

    whole = items()
    assert whole == 80 * ITEMS
    assert items(racing="on") < 0.9 * whole
    assert items(stages=3) < 0.7 * whole
    assert items(racing="on", stages=3) < 0.6 * whole
    assert items(proxy="irt") < 0.65 * whole


def test_early_stages_see_fewer_blocks_and_the_last_sees_all() -> None:
    watch = Watch()
    result = evolve(problem(GOAL, of_items(hill), tell=watch), trials=100, stages=3)
    seen = [{one.items for one in watch.members(g.number)} for g in result.generations]
    assert sorted(map(max, seen)) == [items for (items,) in seen]
    assert [seen[0], seen[-1]] == [{ITEMS // 4}, {ITEMS}]
    assert {ITEMS // 2} in seen


@pytest.mark.parametrize(
    ("stages", "estimated", "blocks"),
    [
        (1, False, [3]),
        (2, False, [2, 3]),
        (3, False, [1, 2, 3]),
        (9, False, [1, 2, 3]),
        (1, True, [2]),
        (2, True, [1, 2]),
        (9, True, [1, 2]),
    ],
)
def test_stages_double_the_items_as_far_as_blocks_tell_them_apart(
    stages: int, estimated: bool, blocks: list[int]
) -> None:
    estimate = (lambda candidate, trial: 0.0) if estimated else None
    plan = Plan(trials=60, sigma=0.1, stages=stages, estimate=estimate)
    progress = [(stage + 0.5) / len(blocks) for stage in range(len(blocks))]
    assert [plan.blocks_at(each, (50, 50, 100)) for each in progress] == blocks
    assert plan.blocks_at(0.0, (200,)) == 1
