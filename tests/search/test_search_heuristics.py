"""The heuristics against closed forms and a naive search."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landscapes import Watch, as_scores, objective

from modelglue.errors import EvaluationError, UnknownName
from modelglue.evaluate.scores import Scores
from modelglue.search.greedy import mix
from modelglue.search.problem import Problem, canonical, search
from modelglue.search.result import SearchResult
from modelglue.search.trials import in_memory

HEURISTICS = (
    "greedy_soup",
    "heuristic_average",
    "heuristic_coefficient",
    "heuristic_dissimilarity",
    "heuristic_similarity",
)
PLACES = {"base": (0.0, 0.0), "maths": (1.0, 0.0), "code": (0.0, 1.0), "noise": (0.5, -5.0)}
GOAL = (0.55, 0.4)


def landscape(coefficients: dict[str, float]) -> Scores:
    """Higher the nearer the mixture of the models' places comes to the goal."""
    x = sum(weight * PLACES[name][0] for name, weight in coefficients.items())
    y = sum(weight * PLACES[name][1] for name, weight in coefficients.items())
    return as_scores(1 / (1 + math.hypot(x - GOAL[0], y - GOAL[1])))


def nearness(coefficients: dict[str, float], name: str) -> float:
    x = sum(weight * PLACES[model][0] for model, weight in coefficients.items())
    y = sum(weight * PLACES[model][1] for model, weight in coefficients.items())
    return -math.hypot(x - PLACES[name][0], y - PLACES[name][1])


def problem(names: tuple[str, ...] = tuple(PLACES), function=landscape, **more) -> Problem:
    return Problem(names, in_memory(function), nearness, **more)


@pytest.mark.parametrize("strategy", HEURISTICS)
def test_the_result_scores_what_it_says_and_no_worse_than_the_best_single(strategy: str) -> None:
    result = search(strategy, problem())
    assert landscape(result.coefficients).mean == result.score
    assert result.score >= max(landscape({name: 1.0}).mean for name in PLACES)


@pytest.mark.parametrize("strategy", HEURISTICS)
def test_weights_are_positive_and_sum_to_one(strategy: str) -> None:
    weights = search(strategy, problem()).coefficients.values()
    assert all(weight > 0 for weight in weights)
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("strategy", HEURISTICS)
def test_a_model_that_only_harms_is_dropped_with_a_reason(strategy: str) -> None:
    result = search(strategy, problem())
    assert "noise" not in result.coefficients
    (step,) = [step for step in result.steps if step.candidate == "noise"]
    assert not step.accepted
    assert "lowers the search score" in step.reason


@pytest.mark.parametrize("strategy", HEURISTICS)
def test_every_model_has_its_turn_once(strategy: str) -> None:
    result = search(strategy, problem())
    assert sorted(step.candidate for step in result.steps) == sorted(PLACES)


@pytest.mark.parametrize("strategy", HEURISTICS)
def test_one_model_is_its_own_best_merge(strategy: str) -> None:
    result = search(strategy, problem(("maths",)))
    assert result.coefficients == {"maths": 1.0}
    assert result.trials == 1


@pytest.mark.parametrize("strategy", [name for name in HEURISTICS if name != "greedy_soup"])
def test_where_all_are_equal_nothing_is_merged(strategy: str) -> None:
    result = search(strategy, problem(function=lambda coefficients: as_scores(0.5)))
    assert result.coefficients == {"base": 1.0}


@pytest.mark.parametrize("strategy", HEURISTICS)
def test_a_result_survives_json(strategy: str) -> None:
    result = search(strategy, problem())
    assert SearchResult.from_json(result.to_json()) == result


@pytest.mark.parametrize("strategy", HEURISTICS)
def test_every_candidate_is_told_of_as_it_was_scored(strategy: str) -> None:
    watch = Watch()
    result = search(strategy, problem(tell=watch))
    assert [one.coefficients for one in watch.calls[0]] == [{name: 1.0} for name in PLACES]
    assert all(one.value == landscape(one.coefficients).mean for one in watch.tried)
    assert all(one.whole and one.generation is None for one in watch.tried)
    assert len({str(one.coefficients) for one in watch.tried}) == result.trials == result.items


@pytest.mark.parametrize("strategy", HEURISTICS)
def test_a_mixture_that_fails_is_not_kept_and_the_reason_stands(strategy: str) -> None:
    def no_code(coefficients: dict[str, float]) -> float:
        mixed = len(coefficients) > 1 and "code" in coefficients
        return math.nan if mixed else landscape(coefficients).mean

    result = search(strategy, Problem(tuple(PLACES), objective(no_code), nearness))
    step = next(s for s in result.steps if s.candidate == "code" or s.score == -math.inf)
    assert (step.accepted, step.score) == (False, -math.inf)
    assert step.reason == "cannot be scored: the merge holds NaN"
    assert "code" not in result.coefficients or len(result.coefficients) == 1
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert "Infinity" not in json.dumps(result.to_json())


@pytest.mark.parametrize("strategy", HEURISTICS)
def test_where_no_model_can_be_scored_there_is_one_clear_error(strategy: str) -> None:
    broken = Problem(tuple(PLACES), objective(lambda coefficients: math.nan), nearness)
    with pytest.raises(EvaluationError, match=r"no model can be scored.*code: the merge holds NaN"):
        search(strategy, broken)


def test_average_weighs_all_that_it_accepts_the_same() -> None:
    result = search("heuristic_average", problem(function=lambda c: as_scores(len(c) / 10)))
    assert result.coefficients == pytest.approx(dict.fromkeys(PLACES, 1 / 4))


def test_coefficient_takes_the_best_share_of_nine_and_not_the_last() -> None:
    def goal_at_three_tenths(coefficients: dict[str, float]) -> Scores:
        return as_scores(1 - abs(coefficients.get("code", 0.0) - 0.3))

    result = search("heuristic_coefficient", problem(("base", "code"), goal_at_three_tenths))
    assert result.coefficients == {"base": 0.7, "code": 0.3}


def test_coefficient_agrees_with_a_naive_search_written_out() -> None:
    order = sorted(PLACES, key=lambda name: -landscape({name: 1.0}).mean)
    merged, best = (1.0,), landscape({order[0]: 1.0}).mean
    kept = [order[0]]
    for candidate in order[1:]:
        options = []
        for tenth in range(1, 10):
            weights = (*(tenth / 10 * weight for weight in merged), 1 - tenth / 10)
            options.append((landscape(dict(zip([*kept, candidate], weights))).mean, weights))
        top = max(options, key=lambda option: option[0])
        if top[0] > best:
            best, merged = top
            kept.append(candidate)
    result = search("heuristic_coefficient", problem())
    assert result.coefficients == pytest.approx(dict(zip(kept, merged)))
    assert result.score == pytest.approx(best)


def test_similarity_takes_the_nearest_to_what_stands_and_dissimilarity_the_farthest() -> None:
    for strategy, pick in [("heuristic_similarity", max), ("heuristic_dissimilarity", min)]:
        result = search(strategy, problem())
        standing = {result.steps[0].candidate: 1.0}
        waiting = [name for name in PLACES if name not in standing]
        for step in result.steps[1:]:
            assert step.candidate == pick(waiting, key=lambda name: nearness(standing, name))
            waiting.remove(step.candidate)
            if step.accepted:
                standing = mix(standing, step.candidate, step.coefficient)


def test_candidates_come_by_falling_search_score() -> None:
    result = search("heuristic_coefficient", problem())
    scores = [landscape({step.candidate: 1.0}).mean for step in result.steps]
    assert scores == sorted(scores, reverse=True)


@given(st.lists(st.sampled_from([k / 10 for k in range(1, 10)]), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_rounds_flatten_to_the_papers_closed_form(shares: list[float]) -> None:
    names = [f"m{i}" for i in range(len(shares) + 1)]
    weights = {names[0]: 1.0}
    for name, share in zip(names[1:], shares):
        weights = mix(weights, name, share)
    expected = {names[0]: math.prod(shares)}
    for i, share in enumerate(shares):
        expected[names[i + 1]] = (1 - share) * math.prod(shares[i + 1 :])
    assert weights == pytest.approx(expected, abs=1e-9)


@given(st.permutations(list(PLACES)))
@settings(max_examples=24, deadline=None)
def test_the_order_of_the_models_changes_nothing_where_no_two_are_equal(names: list[str]) -> None:
    for strategy in HEURISTICS:
        assert search(strategy, problem(tuple(names))) == search(strategy, problem())


def test_candidates_that_differ_by_rounding_alone_are_one() -> None:
    for a, b in itertools.permutations([0.1 + 0.2, 0.3]):
        assert canonical({"x": a, "y": 0.7, "z": 0.0}) == canonical({"y": 0.7, "x": b})


def test_an_unknown_strategy_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="heuristic_average"):
        search("heuristic_averge", problem())
