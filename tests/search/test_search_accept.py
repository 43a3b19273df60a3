"""A merge is accepted only where paired tests say that it is better than every rival."""

import json

import numpy as np
import pytest
from simulated_answers import accepted, models, scores_of

from modelglue.errors import EvaluationError
from modelglue.evaluate.statistics import Interval, paired_test
from modelglue.search.accept import Comparison, Verdict, judge


def test_a_merge_that_is_as_good_as_the_best_single_is_accepted_no_more_often_than_the_level() -> (
    None
):
    """The hardest null: equal to one rival, far above the other. 5 % of 200, three deviations."""
    assert accepted(200, 0.0, 0.0, -0.2, level=0.05) <= 10 + 3 * 3.1


def test_a_merge_that_is_as_good_as_all_is_accepted_less_often_still() -> None:
    assert accepted(150, 0.0, 0.0, 0.0, level=0.1) <= 15


def test_several_looks_share_the_level() -> None:
    assert accepted(100, 0.0, 0.0, level=0.1, finalists=4) <= 10 + 3 * 3.0


def test_five_points_on_three_hundred_items_are_mostly_seen() -> None:
    assert accepted(100, 0.05, 0.0, level=0.05) >= 50
    assert accepted(60, 0.12, 0.0, -0.1, level=0.01) >= 50


def test_the_largest_p_decides() -> None:
    draw = np.random.default_rng(1)
    candidate, near, far = models(draw, 0.05, 0.04, -0.3)
    verdict = judge(candidate, {"near": near, "far": far}, level=0.05, looks=1, tried=9)
    by_name = {each.rival: each.p for each in verdict.comparisons}
    assert by_name["far"] <= 0.05 < by_name["near"]
    assert not verdict.accepted
    assert judge(candidate, {"far": far}, level=0.05, looks=1, tried=9).accepted


def test_every_look_costs_some_of_the_level() -> None:
    draw = np.random.default_rng(2)
    candidate, rival = models(draw, 0.06, 0.0)
    p = paired_test(candidate, rival)
    assert 0.001 < p < 0.05
    assert judge(candidate, {"rival": rival}, level=0.05, looks=1, tried=1).accepted
    assert not judge(candidate, {"rival": rival}, level=0.05, looks=50, tried=1).accepted


def test_the_interval_belongs_to_the_test() -> None:
    """It lies above zero where the test accepts, and nowhere else; it is wider for more looks."""
    draw = np.random.default_rng(3)
    for gain in (-0.1, 0.0, *np.linspace(0.03, 0.08, 20), 0.15):
        candidate, rival = models(draw, gain, 0.0)
        one, many = (judge(candidate, {"r": rival}, level=0.05, looks=n, tried=1) for n in (1, 20))
        assert one.accepted == (one.comparisons[0].difference.low > 0)
        assert many.comparisons[0].difference.low <= one.comparisons[0].difference.low
        assert many.comparisons[0].difference.high >= one.comparisons[0].difference.high


def test_the_test_can_reach_any_corrected_level() -> None:
    better, worse = scores_of(np.ones((1, 60))), scores_of(np.zeros((1, 60)))
    assert judge(better, {"r": worse}, level=0.01, looks=100, tried=100).accepted
    with pytest.raises(ValueError, match=r"cannot tell p-values of 0\.0001"):
        judge(better, {"r": worse}, level=0.01, looks=100, tried=100, resamples=5000)


def test_too_few_items_accept_nobody_however_clear() -> None:
    """Four groups: no p-value is below 1 / 16."""
    better, worse = scores_of(np.ones((1, 4))), scores_of(np.zeros((1, 4)))
    assert not judge(better, {"r": worse}, level=0.05, looks=1, tried=1).accepted


def verdict(p: float, *, looks: int = 5, tried: int = 37, accepted: bool = False) -> Verdict:
    gap = Interval(0.008, -0.005, 0.021)
    return Verdict(
        accepted,
        0.05,
        looks,
        tried,
        (Comparison("maths", gap, p), Comparison("base", gap, 0.001)),
    )


def test_a_refusal_says_so_plainly() -> None:
    assert verdict(0.09).words() == (
        "No merge helps here: the best single model, maths, stays. The merge that was put to the "
        "test is not shown to be better than maths (+0.8 points, 98 % interval −0.5 to +2.1, "
        "p = 0.09 > 0.01). 37 candidates were tried, 5 were put to the test."
    )


def test_of_many_rivals_the_nearest_are_named_and_the_rest_counted() -> None:
    gap = Interval(0.02, 0.01, 0.03)
    ps = {"a": 0.001, "b": 0.004, "c": 0.003, "d": 0.002}
    many = Verdict(True, 0.05, 1, 9, tuple(Comparison(name, gap, p) for name, p in ps.items()))
    words = many.words()
    assert words.startswith("The merge is better than b (")
    assert " and c (" in words
    assert ") and 2 others. 9 candidates" in words


def test_an_acceptance_names_its_rivals() -> None:
    words = verdict(0.0099, looks=1, tried=1, accepted=True).words()
    assert words.startswith("The merge is better than maths (+0.8 points, 90 % interval")
    assert ") and base (" in words
    assert "p = 0.0099 ≤ 0.05" in words
    assert words.endswith("1 candidate was tried, 1 was put to the test.")


def test_a_verdict_goes_to_json_and_back() -> None:
    mine = verdict(0.09)
    assert Verdict.from_json(json.loads(json.dumps(mine.to_json()))) == mine


def test_what_cannot_be_judged_is_refused() -> None:
    one = scores_of(np.ones((1, 10)))
    with pytest.raises(ValueError, match=r"level is 0\.5"):
        judge(one, {"r": one}, level=0.5, looks=1, tried=1)
    with pytest.raises(ValueError, match="at least one of each"):
        judge(one, {}, level=0.05, looks=1, tried=1)
    with pytest.raises(EvaluationError, match="different items"):
        judge(one, {"r": scores_of(np.ones((1, 11)))}, level=0.05, looks=1, tried=1)
