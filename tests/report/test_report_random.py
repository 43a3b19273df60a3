import io
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_page import body
from rich.console import Console

from modelglue.report.data import (
    AcceptanceTest,
    Difference,
    ModelFate,
    RivalComparison,
    RunReport,
    SearchGeneration,
    SearchPath,
    SearchStep,
    SimilarityMap,
    TableRow,
)
from modelglue.report.html import render_html
from modelglue.report.markdown import render_markdown
from modelglue.report.terminal import print_report

# Random reports: names that clash or are missing, numbers that are not numbers.

text = st.text(max_size=8)
number = st.one_of(st.floats(-1, 1.5), st.just(float("nan")))
scores = st.dictionaries(text, number, max_size=3)
family = st.one_of(st.none(), st.integers(0, 2))


@st.composite
def similarities(draw: st.DrawFn) -> SimilarityMap:
    names = draw(st.lists(text, max_size=5))
    row = st.lists(st.one_of(st.none(), number), max_size=5).map(tuple)
    matrix = draw(st.lists(row, max_size=5))
    members = (
        draw(st.lists(st.lists(st.sampled_from(names), max_size=3).map(tuple), max_size=3))
        if names
        else []
    )
    return SimilarityMap(tuple(names), tuple(matrix), draw(st.floats(0, 1)), tuple(members))


def several(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


differences = st.none() | st.builds(Difference, number, number, number)
generation = st.builds(
    SearchGeneration,
    st.integers(0, 99),
    number | st.just(float("-inf")),
    number,
    number,
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 10**6),
)
knob = text | st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "density of ", "place 3 of ", "place 4 of ", "t of "]),
    text | st.just("*"),
    st.sampled_from(["", " [layers 0-1]", " [layer 2]", " [rest]"]),
)
rival = st.builds(RivalComparison, text, st.builds(Difference, number, number, number), number)
accepting = st.builds(
    AcceptanceTest,
    st.integers(0, 2),
    text,
    several(text),
    st.booleans(),
    number,
    st.integers(0, 9),
    st.integers(0, 10**6),
    several(rival),
    text,
)
step = st.builds(SearchStep, text, st.none() | st.floats(0, 1), number, number, st.booleans(), text)
reports = st.builds(
    RunReport,
    title=text,
    modelglue=text,
    seconds=st.none() | st.floats(0, 1e6),
    models=several(
        st.builds(
            ModelFate,
            text,
            text,
            text,
            st.integers(0, 10**12),
            family,
            st.just("merged"),
            text,
            scores,
        )
    ),
    similarity=similarities(),
    searches=several(
        st.builds(
            SearchPath,
            st.integers(0, 2),
            text,
            st.booleans(),
            number,
            st.integers(0, 99),
            st.dictionaries(knob, st.floats(-1, 2), max_size=5),
            several(step),
            several(generation),
            st.integers(0, 10**6),
        )
    ),
    routing=st.none(),
    tasks=st.just(()),
    table=several(
        st.builds(
            TableRow,
            text,
            st.sampled_from(["single", "heuristic", "glued", "oracle"]),
            scores,
            number,
            differences,
            st.integers(0, 10**12),
            st.integers(0, 10**12),
            text,
        )
    ),
    notes=several(text),
    command=text,
    acceptance=several(accepting),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reports)
def test_any_report_can_be_shown_and_shown_again_from_its_json(report):
    page = render_html(report)
    body(page)
    again = RunReport.from_json(report.to_json())
    assert render_html(again) == page
    assert render_markdown(again) == render_markdown(report)
    print_report(report, Console(file=io.StringIO(), width=100))
