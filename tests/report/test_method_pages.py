from pathlib import Path

import pytest

from modelglue.merge.config.schema import parse_config
from modelglue.merge.method import METHODS
from modelglue.report.method_pages import example, pages, write_pages

COMMITTED = Path(__file__).parents[2] / "docs" / "methods"


def test_the_committed_pages_are_what_the_methods_declare() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in COMMITTED.iterdir()}
    assert committed == pages(), "run `make docs`"


def test_every_method_has_a_page_with_all_of_its_parameters() -> None:
    for name in METHODS:
        text = pages()[f"{name}.md"]
        assert f"[{name}]({name}.md)" in pages()["README.md"]
        assert all(f"| `{p.name}` |" in text for p in METHODS[name].parameters)


def test_a_bar_in_a_cell_does_not_end_it(tmp_path: Path) -> None:
    write_pages(tmp_path)
    for path in tmp_path.iterdir():
        tables = [b for b in path.read_text(encoding="utf-8").split("\n\n") if b.startswith("|")]
        for table in tables:
            cells = {line.replace("\\|", "").count("|") for line in table.splitlines()}
            assert len(cells) == 1


@pytest.mark.parametrize("name", list(METHODS))
def test_the_example_is_a_configuration(name: str) -> None:
    config = parse_config(example(METHODS[name].describe()))
    assert config.merge_method == name
