"""Greedy soup against the paper's recipe written out, and against its sister."""

import math

import pytest
from landscapes import near, objective, problem

from modelglue.search.problem import search

GOAL = {"a": 0.4, "b": 0.35, "c": 0.25, "d": -0.3}


def test_it_agrees_with_the_papers_recipe_written_out() -> None:
    score = near(GOAL)
    order = sorted(GOAL, key=lambda name: -score({name: 1.0}))
    soup: list[str] = []
    for name in order:
        taken = [*soup, name]
        before = score(dict.fromkeys(soup, 1 / len(soup))) if soup else -math.inf
        if score(dict.fromkeys(taken, 1 / len(taken))) >= before:
            soup = taken
    result = search("greedy_soup", problem(GOAL, objective(score)))
    assert result.coefficients == pytest.approx(dict.fromkeys(soup, 1 / len(soup)))
    assert 1 < len(soup) < len(GOAL)
    assert result.score == pytest.approx(score(result.coefficients))


def test_what_changes_nothing_stays_in_the_soup_and_out_of_the_average() -> None:
    alike = problem("abc", objective(lambda coefficients: 0.5))
    soup = search("greedy_soup", alike)
    assert soup.coefficients == pytest.approx(dict.fromkeys("abc", 1 / 3))
    assert [step.reason for step in soup.steps[1:]] == ["leaves the search score as it was"] * 2
    assert all(step.accepted for step in soup.steps)
    assert search("heuristic_average", alike).coefficients == {"a": 1.0}


def test_where_no_two_scores_are_equal_it_is_the_average() -> None:
    given = problem(GOAL, objective(near(GOAL)))
    soup, average = search("greedy_soup", given), search("heuristic_average", given)
    assert (soup.coefficients, soup.steps) == (average.coefficients, average.steps)


def test_it_takes_a_trial_a_model_more() -> None:
    assert search("greedy_soup", problem(GOAL, objective(near(GOAL)))).trials == 2 * len(GOAL) - 1
