"""Every strategy in a recipe: run, taken up again, reported."""

from pathlib import Path

import pytest

from modelglue.recipe.glue import glue
from modelglue.recipe.search import search_families
from modelglue.report.write import read_report
from modelglue.search.problem import STRATEGIES, options_of
from stories import make_stories, story_recipe


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stories(tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_recipe_can_name_any_strategy(strategy: str, zoo: Path, tmp_path: Path) -> None:
    small = {"trials": 9} if "trials" in options_of(strategy) else {}
    config = story_recipe(zoo, tmp_path / "run", {"strategy": strategy, **small, "validation": 0})
    (path,) = search_families(config).paths
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    assert path.strategy == strategy
    assert path.steps or path.generations
    outcome = glue(config)
    assert read_report(outcome.path).searches == (path,)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes().startswith(journal)
    assert strategy in (outcome.path / "report.html").read_text()
