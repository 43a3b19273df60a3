"""Every strategy in a recipe: run, taken up again, reported."""

import json
from pathlib import Path

import optuna
import pytest

import tiny
from modelglue.errors import ConfigError
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


def test_runs_that_share_a_database_have_studies_of_their_own(zoo: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/studies.db"
    search = {"strategies": ["heuristic_average"], "validation": 0, "storage": storage}
    for name in ("one", "two"):
        (path,) = search_families(story_recipe(zoo, tmp_path / name, search)).paths
        # As after a kill: the trials stand, the stage does not.
        (tmp_path / name / "stages/search-1/manifest.json").unlink()
        search_families(story_recipe(zoo, tmp_path / name, search))
    names = optuna.get_all_study_names(storage)
    assert [name.rpartition(" ")[0] for name in names] == [
        "search-1 heuristic_average of one",
        "search-1 heuristic_average of two",
    ]
    studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
    assert [len(study.trials) for study in studies] == [path.trials] * 2
    assert not list(tmp_path.glob("*/optuna.journal"))


def test_a_database_that_cannot_be_used_is_told_before_any_work(zoo: Path, tmp_path: Path) -> None:
    search = {"strategies": ["heuristic_average"], "storage": "sqlite:////no/such/folder/s.db"}
    with pytest.raises(
        ConfigError, match=r"search\.storage: sqlite:////no/such/folder/s.db cannot"
    ):
        search_families(story_recipe(zoo, tmp_path / "run", search))
    assert not (tmp_path / "run").exists()


def test_a_study_that_cannot_be_written_is_a_note_in_the_report(zoo: Path, tmp_path: Path) -> None:
    search = {"strategies": ["heuristic_average"], "validation": 0}
    config = story_recipe(zoo, tmp_path / "run", search)
    search_families(config)
    (tmp_path / "run/stages/search-1/manifest.json").unlink()
    (tmp_path / "run/optuna.journal").write_text("my notes")
    (note,) = glue(config).report.notes
    assert "optuna.journal is no journal of Optuna's; move it away" in note
    assert (tmp_path / "run/optuna.journal").read_text() == "my notes"


def test_layers_that_cannot_be_scaled_are_moved_as_they_are(zoo: Path, tmp_path: Path) -> None:
    gemma = {"model_type": "gemma2", "head_dim": 8, "num_hidden_layers": 2}
    names = [str(tiny.save_model(tmp_path / "gemma-0", **gemma))]
    names += [str(tiny.save_variant(Path(names[0]), tmp_path / "gemma-1", seed=1))]
    search = {"strategy": "data_flow", "trials": 12, "validation": 0}
    config = story_recipe(zoo, tmp_path / "run", search, models=names, base=names[0])
    (note,) = search_families(config).notes
    assert glue(config).report.notes == (note,)
    assert note.startswith("data_flow moves the layers of gemma-0, gemma-1 unscaled: ")
    assert "post_feedforward_layernorm" in note
    journal = (tmp_path / "run/journal.jsonl").read_text().splitlines()
    trials = [json.loads(line) for line in journal]
    moved = [t["coefficients"] for t in trials if len(t.get("coefficients", ())) > 1]
    assert len(moved) > 5
    assert {scale for each in moved for scale in each.values()} == {1.0}


def test_paths_that_may_not_be_as_long_as_a_model_are_told_before_any_work(
    zoo: Path, tmp_path: Path
) -> None:
    config = story_recipe(zoo, tmp_path / "run", {"strategy": "data_flow", "most_layers": 1})
    with pytest.raises(ConfigError, match=r"most_layers is 1, and base, ft-a, ft-b have 2"):
        glue(config)
    assert not (tmp_path / "run").exists()
