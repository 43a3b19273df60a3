import re
from dataclasses import replace

import pytest
from report_sample import make_evolved_report, make_report

from modelglue.report import candidates, generations, words
from modelglue.report.headline import headline
from modelglue.report.markdown import MAX_MATRIX, fenced, render_markdown, table, text


def split_row(line: str) -> list[str]:
    """Cells as a Markdown reader finds them: at pipes that no backslash precedes."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables(document: str) -> list[list[list[str]]]:
    blocks = document.split("\n\n")
    return [[split_row(row) for row in b.splitlines()] for b in blocks if b.startswith("|")]


def test_a_pipe_in_a_name_does_not_open_a_cell():
    report = make_report(4)
    row = replace(report.table[0], name="a|b\\|c\nd")
    for rows in tables(render_markdown(replace(report, table=(row,)))):
        assert len({len(cells) for cells in rows}) == 1


@pytest.mark.parametrize("name", ["<script>", "*a*", "_a_", "`a`", "[a](b)", "a|b", "a\\", "~~a~~"])
def test_markdown_in_a_name_is_escaped(name):
    escaped = text(name)
    assert re.sub(r"\\(.)", r"\1", escaped) == name
    bare = re.sub(r"\\.", "", escaped)
    assert not set(bare) & set("<>*`[]|~\\")


def test_an_underscore_inside_a_name_stays_readable():
    assert text("heuristic_average") == "heuristic_average"


def test_a_code_block_cannot_be_closed_from_inside():
    block = fenced("run ```` me")
    assert block.startswith("`````\n")
    assert block.endswith("\n`````")


def test_a_table_has_a_rule_under_its_header():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_final_table_shows_the_numbers_of_the_data():
    report = make_report(8)
    final = next(rows for rows in tables(render_markdown(report)) if rows[0][0] == "Contestant")
    shown = {cells[0]: cells for cells in final[2:]}
    assert set(shown) == {row.name for row in report.table}
    for row in report.table:
        scores = [words.score(value) for value in row.scores.values()]
        assert shown[row.name][2:7] == [words.score(row.average), words.difference(row), *scores]


def test_the_matrix_is_printed_for_a_small_zoo_and_the_nearest_for_any():
    small, large = render_markdown(make_report(8)), render_markdown(make_report(MAX_MATRIX + 1))
    assert "| Model | 1 | 2 |" in small
    assert "| Model | 1 | 2 |" not in large
    assert "Nearest inside" in small
    assert "Nearest inside" in large


def test_both_documents_say_the_same_headline():
    report = make_report(8)
    document = render_markdown(report)
    assert headline(report).sentence in document


def test_pairs_beyond_the_limit_are_counted():
    assert "more in report.json." in render_markdown(make_report(40))


def test_an_evolution_shows_a_selection_of_its_generations_and_says_so():
    report = make_evolved_report(generations=50)
    path = next(path for path in report.searches if path.strategy == "evolution")
    document = render_markdown(report)
    rows = next(rows for rows in tables(document) if rows[0][0] == "Generation")[2:]
    assert rows == [generations.row(one) for one in generations.selection(path.generations)]
    assert f"{generations.MOST} of 50 generations; all are in report.json." in document
    assert generations.summary(path) in document


def test_the_numbers_of_a_candidate_are_tables_and_lines():
    report = make_evolved_report()
    path = next(path for path in report.searches if path.strategy == "evolution")
    document = render_markdown(report)
    grid = next(rows for rows in tables(document) if rows[0][0] == "Group")
    for group, *cells in grid[2:]:
        wanted = [path.coefficients[f"{name} [{group}]"] for name in grid[0][1:]]
        assert cells == [words.weight(number) for number in wanted]
    for name, number in candidates.read(path).parameters.items():
        assert f"- {name}: {words.weight(number)}" in document


def test_a_pipe_in_the_name_of_a_knob_does_not_open_a_cell():
    report = make_evolved_report()
    knobs = {"a|b [layers 0|1]": 0.5, "c|d [rest]": 0.5, "place 0 of e|f [layer 0]": 1.0}
    path = replace(report.searches[-2], coefficients=knobs)
    for rows in tables(render_markdown(replace(report, searches=(path,)))):
        assert len({len(cells) for cells in rows}) == 1


def test_verdicts_are_told_with_their_rivals_before_the_final_table():
    report = make_evolved_report(accepted=False)
    document = render_markdown(report)
    section = document[document.index("## Which merges") : document.index("## Final table")]
    assert section.count("✕ not accepted") == 2
    for test, rows in zip(report.acceptance, tables(section), strict=True):
        assert text(test.text) in section
        assert [cells[0] for cells in rows[2:]] == [one.rival for one in test.comparisons]
    assert "Which merges" not in render_markdown(make_report(8))


def test_items_that_only_accept_have_a_column_where_there_are_any():
    assert words.VALIDATION in render_markdown(make_evolved_report())
    assert words.VALIDATION not in render_markdown(make_report(8))
