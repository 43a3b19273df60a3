import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import make_evolved_report

from modelglue.report import explain, generations, words
from modelglue.report.data import SearchGeneration, SearchPath
from modelglue.report.evolution_figure import evolution


def path_of(*told: SearchGeneration) -> SearchPath:
    return SearchPath(0, "evolution", True, 0.7, 40, {"a": 1.0}, generations=told)


def rising(scores: list[float]) -> list[SearchGeneration]:
    best = [max(scores[: i + 1]) for i in range(len(scores))]
    return [SearchGeneration(i, s, b, 0.1, 6) for i, (s, b) in enumerate(zip(scores, best))]


def evolved(count: int = 30) -> SearchPath:
    searches = make_evolved_report(generations=count).searches
    return next(path for path in searches if path.strategy == "evolution")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80), st.integers(2, 15))
def test_a_selection_is_in_order_no_longer_than_allowed_and_has_both_ends(scores, most):
    told = rising(scores)
    shown = generations.selection(told, most)
    numbers = [generation.number for generation in shown]
    assert numbers == sorted(set(numbers))
    assert len(shown) == min(most, len(told))
    assert (shown[0], shown[-1]) == (told[0], told[-1])


def test_a_selection_has_every_generation_that_raised_the_best():
    scores = [0.5] * 40
    for better, at in ((0.6, 7), (0.7, 8), (0.8, 30)):
        scores[at:] = [better] * (40 - at)
    numbers = {g.number for g in generations.selection(rising(scores))}
    assert {0, 7, 8, 30, 39} <= numbers


def test_a_generation_of_which_all_failed_has_no_best():
    for best in (-math.inf, math.nan):
        row = generations.row(SearchGeneration(3, best, -math.inf, 0.1, 6, failed=6))
        assert row[:3] == ["4", words.NONE, words.NONE]


def test_a_mean_below_zero_is_a_score_too():
    row = generations.row(SearchGeneration(0, -0.2, -0.1, 0.1, 6))
    assert row[1:3] == ["−20.0", "−10.0"]


def test_a_search_without_a_step_size_tells_none():
    path = path_of(SearchGeneration(0, 0.5, 0.5, 0.0, 6), SearchGeneration(1, 0.6, 0.6, 0.0, 6))
    assert generations.row(path.generations[0])[3] == words.NONE
    assert "tep size" not in generations.summary(path) + evolution(path)
    report = replace(make_evolved_report(), searches=(path,))
    assert explain.search(report).startswith(explain.DATA_FLOW)
    assert explain.EVOLUTION in explain.search(make_evolved_report())


def test_the_summary_adds_up():
    told = (
        SearchGeneration(0, 0.5, 0.5, 0.17, 6, stopped=1, items=1000),
        SearchGeneration(1, 0.6, 0.6, 0.1, 5, stopped=2, failed=1, items=900),
    )
    assert generations.summary(path_of(*told)) == (
        "2 generations of 5 to 6 candidates, 11 in all: 3 stopped early, 1 could not be scored. "
        "Step size 0.17 → 0.1."
    )


def marks(figure: ET.Element, kind: str) -> list[ET.Element]:
    return [
        svg for svg in figure.findall("svg") if svg.find(f"path[@class='mark {kind}']") is not None
    ]


def percent(mark: ET.Element, side: str) -> float:
    return float(mark.get(side, "").rstrip("%"))


def middles(figure: ET.Element, path: SearchPath) -> list[float]:
    """Where each generation stands, by its bar of the step size."""
    bars = figure.findall("rect[@class='spread']")
    assert len(bars) == len(path.generations)
    return [percent(bar, "x") + percent(bar, "width") / 2 for bar in bars]


def test_dots_and_the_line_stand_where_the_numbers_are():
    path = evolved()
    figure = ET.fromstring(evolution(path))
    finite = [g for g in path.generations if math.isfinite(g.best)]
    dots = marks(figure, "best")
    assert len(dots) == len(finite)
    heights = [float(dot.get("y", "")) for dot in dots]
    slope = (heights[-1] - heights[0]) / (finite[-1].best - finite[0].best)
    assert slope < 0
    for generation, height in zip(finite, heights):
        expected = heights[0] + slope * (generation.best - finite[0].best)
        assert height == pytest.approx(expected, abs=0.05)
    for generation, middle in zip(path.generations, middles(figure, path)):
        expected = heights[0] + slope * (generation.incumbent - finite[0].best)
        (level,) = (
            float(line.get("y1", ""))
            for line in figure.findall("line[@class='path']")
            if line.get("y1") == line.get("y2")
            and percent(line, "x1") < middle < percent(line, "x2")
        )
        assert level == pytest.approx(expected, abs=0.05)


def test_a_generation_that_failed_is_a_cross_in_the_figure():
    path = evolved()
    failed = [g for g in path.generations if not math.isfinite(g.best)]
    crosses = marks(ET.fromstring(evolution(path)), "dropped")
    assert len(crosses) == len(failed) == 1
    assert "6 could not be scored" in "".join(crosses[0].itertext())


def test_step_sizes_have_bars_in_proportion():
    path = evolved()
    bars = ET.fromstring(evolution(path)).findall("rect[@class='spread']")
    heights = [float(bar.get("height", "")) for bar in bars]
    ratios = [height / g.spread for height, g in zip(heights, path.generations, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=0.01)


numbers = st.floats(-1, 1.5) | st.just(math.nan) | st.just(-math.inf)
anything = st.builds(
    SearchGeneration, st.integers(0, 99), numbers, numbers, numbers, st.integers(0, 9)
)


@given(st.lists(anything, min_size=1, max_size=8))
def test_any_generations_can_be_drawn(told):
    figure = evolution(path_of(*told))
    ET.fromstring(figure)
    assert "nan" not in figure
    assert "inf" not in figure


def test_five_hundred_generations_stay_a_small_figure():
    assert len(evolution(evolved(500)).encode()) < 400_000
