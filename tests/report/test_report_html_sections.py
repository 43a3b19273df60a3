from dataclasses import replace

import pytest
from report_page import Page, body, lonely, table_of
from report_sample import make_evolved_report, make_report

from modelglue.report import words
from modelglue.report.data import (
    RunReport,
)
from modelglue.report.html import render_html


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
