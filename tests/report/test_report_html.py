import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_sample import make_evolved_report, make_report
from rich.console import Console

from modelglue.report import words
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
from modelglue.report.heat_map import bucket, bucket_edges
from modelglue.report.html import render_html
from modelglue.report.markdown import render_markdown
from modelglue.report.terminal import print_report

ATTACK = (
    "\"><script>alert(1)</script><img src=x onerror='y'></title></style></svg>-->]]>"
    "&lt;b&gt; {x} url(http://evil.example) \x1b[31m\x00\u202e|\ud800"
)
VOID = {"meta"}


class Page(HTMLParser):
    """Tags with their attributes in order, open tags, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def with_text(value: Any, text: str, key: str = "") -> Any:
    """A report's JSON with every text field and every key of a free mapping set to `text`."""
    if isinstance(value, dict):
        free = key in ("scores", "search", "coefficients", "versions")
        items = list(value.items())[: 1 if free else None]
        return {(text if free else k): with_text(v, text, k) for k, v in items}
    if isinstance(value, list):
        return [with_text(item, text, key) for item in value]
    fixed = key == "fate" or value in (
        "single",
        "uniform",
        "heuristic",
        "mixture",
        "glued",
        "oracle",
    )
    return text if isinstance(value, str) and not fixed else value


def body(page: str) -> ET.Element:
    """The page's body, which is well-formed XML too: figures are drawn by the XML rules."""
    return ET.fromstring(page[page.index("<body") : page.index("</html>")])


def lonely() -> RunReport:
    """Two models that have nothing in common, one task, and nothing that is optional."""
    report = make_report(2, families=2, tasks=1)
    matrix = ((1.0, None), (None, 1.0))
    similarity = SimilarityMap(("a", "b"), matrix, 0.95, (("a",), ("b",)))
    return replace(
        report, searches=(), routing=None, seconds=None, notes=(), similarity=similarity, command=""
    )


REPORTS = {
    "eight models": lambda: make_report(8),
    "two models, one family, one task": lambda: make_report(2, families=1, tasks=1),
    "nothing in common": lonely,
    "evolutions": make_evolved_report,
    "no merge accepted": lambda: make_evolved_report(accepted=False),
    "a hundred models": lambda: make_report(100, families=9, tasks=6),
    "long names of evolutions": lambda: RunReport.from_json(
        with_text(make_evolved_report().to_json(), "name-" * 60)
    ),
    "long names": lambda: RunReport.from_json(with_text(make_report(5).to_json(), "name-" * 60)),
    "empty": lambda: RunReport(
        "", "0", None, (), SimilarityMap((), (), 0.95, ()), (), None, (), ()
    ),
}


@pytest.mark.parametrize("report", REPORTS)
def test_every_tag_is_closed_and_every_figure_is_well_formed(report):
    page = render_html(REPORTS[report]())
    assert Page(page).open == []
    body(page)


@pytest.mark.parametrize("make", [make_report, make_evolved_report])
def test_text_cannot_become_markup(make):
    encoded = make().to_json()
    harmless = Page(render_html(RunReport.from_json(with_text(encoded, "x"))))
    attacked = Page(render_html(RunReport.from_json(with_text(encoded, ATTACK))))
    assert attacked.tags == harmless.tags


def test_what_may_be_wide_scrolls_in_its_own_box():
    root = body(render_html(make_evolved_report()))
    boxed = {table for box in root.iter("div") if box.get("class") == "scroll" for table in box}
    assert all(table in boxed for table in root.iter("table"))


def test_text_is_shown_as_it_was_given():
    encoded = with_text(make_report(5).to_json(), "<script>&amp;\"'</script>")
    assert "<script>&amp;\"'</script>" in Page(render_html(RunReport.from_json(encoded))).text


def test_the_names_of_knobs_are_shown_as_they_were_given():
    name = "<script>&amp;|\"'</script> 模型"
    knobs = {f"{name} [layers 0-1]": 0.5, f"density of {name}": 0.5, "place 3 of <b> [layer 1]": 1}
    report = make_evolved_report()
    path = replace(report.searches[-2], coefficients=knobs)
    page = Page(render_html(replace(report, searches=(path,))))
    assert f"density of {name}" in page.text
    assert "layers: <b> 1" in page.text
    assert {tag for tag, _ in page.tags} & {"script", "b|"} == set()


def test_controls_and_reversed_text_do_not_reach_the_page():
    encoded = with_text(make_report(5).to_json(), ATTACK)
    page = render_html(RunReport.from_json(encoded))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", page)


@pytest.mark.parametrize("make", [make_report, make_evolved_report])
def test_the_page_needs_nothing_but_itself(make):
    page = render_html(make())
    tags = {tag for tag, _ in Page(page).tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "use", "image"}
    names = {name for name, _ in Page(page).attributes}
    assert not names & {"src", "href", "xlink:href", "srcset", "action", "data"}
    assert not any(name.startswith("on") for name in names)
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in page


@pytest.mark.parametrize("make", [make_report, make_evolved_report])
def test_ids_are_unique_and_labels_point_to_them(make):
    attributes = Page(render_html(make())).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for name, value in attributes if name == "aria-labelledby"} <= set(ids)


@pytest.mark.parametrize("make", [make_report, make_evolved_report])
def test_every_figure_is_named_or_hidden_from_screen_readers(make):
    root = body(render_html(make()))
    nested = {inner for svg in root.iter("svg") for inner in svg.iter("svg") if inner is not svg}
    for svg in set(root.iter("svg")) - nested:
        assert svg.get("aria-hidden") == "true" or svg.get("aria-label")


@pytest.mark.parametrize("make", [make_report, make_evolved_report])
def test_every_table_has_a_caption_and_headers_with_a_scope(make):
    root = body(render_html(make()))
    for table in root.iter("table"):
        assert table.find("caption") is not None
        assert all(header.get("scope") for header in table.iter("th"))
        for row in table.iter("tr"):
            assert row.find("th") is not None


@pytest.mark.parametrize("make", [make_report, make_evolved_report])
def test_rows_are_as_wide_as_their_header(make):
    for table in body(render_html(make())).iter("table"):
        widths = {
            sum(int(cell.get("colspan", "1")) for cell in row if cell.tag in ("th", "td"))
            for row in table.iter("tr")
        }
        assert len(widths) == 1


def test_the_final_table_shows_the_numbers_of_the_data():
    report = make_report(8)
    rows = {}
    for row in body(render_html(report)).findall(".//table[@class='final']/tbody/tr"):
        cells = ["".join(cell.itertext()) for cell in row.findall("td")]
        name = row.find("th/span[@class='name']")
        if name is not None:
            rows[name.text] = cells
    assert set(rows) == {row.name for row in report.table}
    for row in report.table:
        average, difference, *scores, stored, active = rows[row.name]
        assert average == words.score(row.average)
        assert scores == [words.score(value) for value in row.scores.values()]
        assert (stored, active) == (words.parameters(row.stored), words.parameters(row.active))
        if row.difference:
            assert difference.lstrip("▲▼") == words.difference(row)


def test_the_forest_plot_puts_marks_where_the_numbers_are():
    report = make_report(8)
    tracks = body(render_html(report)).findall(".//svg[@class='track']")
    zeros = {track.find("line[@class='zero']").get("x1") for track in tracks}  # type: ignore[union-attr]
    assert len(zeros) == 1
    zero = float(zeros.pop().rstrip("%"))  # type: ignore[union-attr]
    scale = set()
    for row, track in zip(words.contestants(report), tracks, strict=True):
        interval = track.find("line[2]")
        if row.difference is None or interval is None:
            continue
        for end, value in (("x1", row.difference.low), ("x2", row.difference.high)):
            scale.add(round((float(interval.get(end, "").rstrip("%")) - zero) / value, -1))
    assert len(scale) == 1


def test_the_glued_model_is_marked_in_words():
    page = Page(render_html(make_report(8)))
    assert "the result" in page.text
    assert "▲" in page.text


def test_a_run_without_a_router_says_so():
    assert "There is no router" in Page(render_html(lonely())).text


def test_a_run_without_a_search_says_why():
    assert "No family has two models" in Page(render_html(lonely())).text


def test_the_winning_search_is_open_and_the_others_are_folded():
    root = body(render_html(make_report(6, families=1)))
    folds = root.findall(".//section[@id='search']/details")
    assert [fold.get("open") for fold in folds] == ["open", None, None]
    assert "the winner" in "".join(folds[0].itertext())


def table_of(root: ET.Element, caption: str) -> list[list[str]]:
    """The rows of the table of that caption, its header first."""
    table = next(t for t in root.iter("table") if t.findtext("caption") == caption)
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def test_every_generation_stands_in_the_table_of_its_evolution():
    report = make_evolved_report(generations=40)
    path = next(path for path in report.searches if path.strategy == "evolution")
    rows = table_of(body(render_html(report)), "Generations of Evolution")[1:]
    assert [row[0] for row in rows] == [f"{g.number + 1}" for g in path.generations]
    assert [row[1] for row in rows] == [words.score(g.best) for g in path.generations]
    assert [row[7] for row in rows] == [f"{g.items:,}" for g in path.generations]


def test_weights_by_group_are_a_table_of_groups_and_models():
    report = make_evolved_report()
    path = next(path for path in report.searches if path.strategy == "evolution")
    head, *rows = table_of(body(render_html(report)), "Numbers by group of tensors")
    assert len(head) == 4
    assert [row[0] for row in rows][-2:] == ["layers 10-11", "rest"]
    for group, *cells in rows:
        for name, cell in zip(head[1:], cells, strict=True):
            assert cell == words.weight(path.coefficients[f"{name} [{group}]"])


def test_the_largest_weight_has_the_deepest_shade_and_a_negative_one_another():
    root = body(render_html(make_evolved_report()))
    table = next(t for t in root.iter("table") if "grid-of" in t.get("class", ""))
    shades = {"".join(td.itertext()): td.get("class", "").split()[-1] for td in table.iter("td")}
    largest = max((text for text in shades if text[0] not in (words.MINUS, ">")), key=float)
    assert shades[largest] == "w5"
    assert {shade[0] for text, shade in shades.items() if text[0] == words.MINUS} == {"n"}


def test_layers_in_their_new_order_are_told_in_words():
    report = make_evolved_report()
    second = report.similarity.families[1]
    page = Page(render_html(report)).text
    assert f"Result: layers: {second[0]} 0–3, {second[-1]} 2–5" in page


@pytest.mark.parametrize("accepted", [True, False])
def test_every_verdict_is_told_with_its_rivals(accepted):
    report = make_evolved_report(accepted=accepted)
    section = body(render_html(report)).find(".//section[@id='acceptance']")
    assert section is not None
    for test, box in zip(report.acceptance, section.findall("article"), strict=True):
        said = "".join(box.itertext())
        assert box.get("class") == ("test accepted" if test.accepted else "test refused")
        assert ("✕ not accepted" in said) != test.accepted
        assert test.text in said
        for one in test.comparisons:
            assert f"against {one.rival}" in said
            assert words.points(one.difference.mean) in said
            assert words.interval(one.difference) in said


def test_a_search_that_came_back_to_a_single_model_has_a_verdict_too():
    report = make_evolved_report()
    path = replace(report.searches[-1], family=2, coefficients={"<maths>": 1.0})
    page = Page(render_html(replace(report, searches=(path,), acceptance=())))
    assert "○ nothing to accept" in page.text
    assert "the best single model, <maths>, which stays" in page.text


def test_a_winner_that_was_not_accepted_is_not_called_the_winner():
    root = body(render_html(make_evolved_report(accepted=False)))
    shown = ["".join(s.itertext()) for s in root.findall(".//section[@id='search']//summary")]
    assert not any("the winner" in text for text in shown)
    assert sum("the best, but not accepted" in text for text in shown) == 2


def test_a_report_without_tests_has_no_section_on_them():
    page = render_html(make_report(8))
    assert "acceptance" not in page
    assert words.VALIDATION not in page
    assert words.VALIDATION in render_html(make_evolved_report())


def test_a_report_from_before_there_were_evolutions_looks_the_same():
    report = make_report(8)
    encoded = report.to_json()
    del encoded["acceptance"]
    for path in encoded["searches"]:
        del path["generations"], path["items"]
    for task in encoded["tasks"]:
        del task["validation_items"]
    assert render_html(RunReport.from_json(encoded)) == render_html(report)


def test_a_value_at_the_threshold_has_a_colour_of_those_above_it():
    similarity = make_report(8).similarity
    edges = bucket_edges(similarity)
    assert bucket(similarity.threshold, edges) == len(edges) // 2
    assert bucket(similarity.threshold - 1e-9, edges) == len(edges) // 2 - 1


def test_every_cell_of_the_heat_map_is_drawn_once():
    root = body(render_html(make_report(30, families=4)))
    heat = root.find(".//svg[@class='heat']")
    assert heat is not None
    cells = [p for p in heat.findall("path") if p.get("class") != "cross"]
    corners = [corner for path in cells for corner in re.findall("M[^h]+", path.get("d", ""))]
    assert len(corners) == len(set(corners)) == 30 * 30


def test_a_page_of_a_hundred_models_stays_below_two_megabytes():
    assert len(render_html(make_report(100, families=9, tasks=6)).encode()) < 2_000_000


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
