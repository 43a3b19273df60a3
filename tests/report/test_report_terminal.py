import io
import re
from dataclasses import replace

import pytest
from report_sample import make_evolved_report, make_report
from rich.console import Console

from modelglue.report import generations, verdicts, words
from modelglue.report.data import RunReport
from modelglue.report.terminal import (
    families_table,
    print_report,
    reasons_table,
    routing_tables,
    search_tables,
)


def printed(report: RunReport, *, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_report(report, console)
    for part in (families_table(report.similarity), reasons_table(report.similarity)):
        console.print(part)
    for path in report.searches:
        console.print(*search_tables(path))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("models", "tasks"), [(2, 1), (8, 3), (40, 6)])
def test_a_hundred_columns_hold_every_number_whole(models, tasks):
    report = make_report(models, tasks=tasks)
    shown = printed(report)
    assert max(map(len, shown.splitlines())) <= 100
    for row in words.contestants(report):
        assert words.difference(row) in shown
        assert all(words.score(value) in shown for value in row.scores.values())


def test_the_verdict_comes_last_where_the_eye_is():
    console = Console(file=io.StringIO(), width=200)
    print_report(make_report(8), console)
    last = console.file.getvalue().strip().splitlines()[-1]  # type: ignore[attr-defined]
    assert last.startswith("Gluing helped.")


def test_brackets_in_a_name_are_not_markup():
    report = make_report(3)
    row = replace(report.table[0], name="[red]model[/]")
    assert "[red]model[/]" in printed(replace(report, table=(row, *report.table[1:])))


def test_an_escape_sequence_in_a_name_does_not_reach_the_terminal():
    report = make_report(3)
    row = replace(report.table[0], name="model\x1b[2J")
    model = replace(report.models[0], name="\x1b]0;title\x07", reason="\x1b[31m")
    shown = printed(replace(report, table=(row,), models=(model,), notes=("\x1bc",)))
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_a_search_table_says_who_came_in_and_who_was_dropped():
    report = make_report(6, families=1)
    shown = printed(report)
    assert "■ start" in shown
    assert "● came in" in shown
    assert "✕ dropped" in shown


def test_without_a_router_there_is_no_routing_table():
    assert routing_tables(replace(make_report(3), routing=None)) == []


def test_single_models_beyond_the_first_are_counted():
    assert "more single models in the report" in printed(make_report(30))


def test_a_hundred_columns_hold_evolutions_and_verdicts_whole():
    report = make_evolved_report(accepted=False, generations=200)
    shown = printed(report)
    assert max(map(len, shown.splitlines())) <= 100
    for test in report.acceptance:
        for one in test.comparisons:
            assert all(cell in shown for cell in verdicts.evidence(one))
    path = next(path for path in report.searches if path.strategy == "evolution")
    for one in generations.selection(path.generations):
        assert re.search(r"\s+".join(map(re.escape, generations.row(one))), shown)
    assert all(words.weight(number) in shown for number in path.coefficients.values())


def test_brackets_and_escapes_in_the_names_of_knobs_reach_nobody():
    report = make_evolved_report()
    knobs = {
        "[red]a[/] [layers 0-1]": 0.5,
        "density of \x1b[2J": 0.5,
        "place 0 of \x1bc [layer 0]": 1,
    }
    path = replace(report.searches[-2], coefficients=knobs)
    test = replace(report.acceptance[0], text="\x1b[2J", candidate="\x1bc")
    shown = printed(replace(report, searches=(path,), acceptance=(test,)))
    assert shown.count("[red]a[/]") == 3  # in the line, and over both tables of its numbers
    assert "\x1b" not in shown


def test_where_no_merge_helps_the_last_line_says_so():
    report = make_evolved_report(accepted=False)
    console = Console(file=io.StringIO(), width=400)
    print_report(replace(report, routing=None), console)
    last = console.file.getvalue().strip().splitlines()[-1]  # type: ignore[attr-defined]
    assert last.startswith("No merge helps here.")
