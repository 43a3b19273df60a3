import re
from dataclasses import replace

import pytest
from report_page import ATTACK, REPORTS, Page, body, with_text
from report_sample import make_evolved_report, make_report

from modelglue.report.data import (
    RunReport,
)
from modelglue.report.heat_map import bucket, bucket_edges
from modelglue.report.html import render_html


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
