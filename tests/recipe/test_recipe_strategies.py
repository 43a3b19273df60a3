"""Every strategy in a recipe: run, taken up again, reported; and what accepts what it finds."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

import shrunken
import tiny
from modelglue.errors import ConfigError, EvaluationError
from modelglue.recipe.config import RecipeConfig, parse_recipe
from modelglue.recipe.glue import glue
from modelglue.recipe.search import search_families
from modelglue.report.write import read_report
from modelglue.search.problem import STRATEGIES, options_of

MODELS = ("base", "ft-a", "ft-b")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo whose story task has items enough to set some aside."""
    root = shrunken.make_zoo(tmp_path_factory.mktemp("zoo")).parent
    for split in ("search", "report"):
        lines = [
            {"id": f"{split}-{i}", "text": f"{split} {i} {word}", "reference": f"{word} {i % 7}"}
            for i in range(24)
            for word in [shrunken.WORDS[i % 10]]
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / "tasks" / f"story.{split}.jsonl").write_text(text)
    return root


def recipe(zoo: Path, output: Path, search: dict[str, Any], **more: Any) -> RecipeConfig:
    found = yaml.safe_load((zoo / "glue.yaml").read_text())
    found |= {"models": [f"models/{name}" for name in MODELS], "search": search}
    found["tasks"] = [task for task in found["tasks"] if task["name"] == "story"]
    return parse_recipe({**found, "output": str(output), **more}, root=zoo)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_recipe_can_name_any_strategy(strategy: str, zoo: Path, tmp_path: Path) -> None:
    small = {"trials": 9} if "trials" in options_of(strategy) else {}
    config = recipe(zoo, tmp_path / "run", {"strategy": strategy, **small, "validation": 0})
    (path,) = search_families(config).paths
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    assert path.strategy == strategy
    assert path.steps or path.generations
    outcome = glue(config)
    assert read_report(outcome.path).searches == (path,)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes().startswith(journal)
    assert strategy in (outcome.path / "report.html").read_text()


def test_a_merge_that_is_not_shown_to_be_better_is_refused(zoo: Path, tmp_path: Path) -> None:
    config = recipe(zoo, tmp_path / "run", {"strategy": "evolution", "trials": 20, "level": 1e-4})
    found = search_families(config)
    (choice,), (test,) = found.choices, found.acceptance
    best = max(choice.singles, key=lambda name: choice.singles[name].mean)
    assert not test.accepted
    assert "No merge helps here" in test.text
    assert choice.single is not None
    assert test.comparisons[0].rival == choice.single
    assert choice.found == "evolution"
    assert choice.winner is None
    report = glue(config).report
    assert [m.name for m in report.models if m.fate == "expert"] == [choice.single]
    assert best in choice.members


def test_the_items_that_accept_are_seen_by_no_strategy(zoo: Path, tmp_path: Path) -> None:
    search_families(recipe(zoo, tmp_path / "run", {"strategies": ["heuristic_average"]}))
    items: dict[str, set[str]] = {"search-1": set(), "search-1 accept": set()}
    for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["event"] == "trial":
            items[record["scope"]] |= set(record["scores"]["tasks"][0]["items"])
    propose, accept = items.values()
    assert len(propose) == len(accept) == 12
    assert not propose & accept


def test_a_model_that_gives_nan_is_left_out_with_the_reason(zoo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    tiny.save_variant(zoo / "models/base", broken, seed=3)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-4] + b"\x00\x00\xc0\x7f")
    models = [*(f"models/{name}" for name in MODELS), str(broken)]
    search = {"strategies": ["heuristic_average"], "validation": 0}
    config = recipe(zoo, tmp_path / "run", search, models=models, threshold=-1)
    report = glue(config).report
    (fate,) = [model for model in report.models if model.name == "broken"]
    assert fate.fate == "dropped"
    assert "cannot be scored" in fate.reason


def test_runs_that_share_a_database_have_studies_of_their_own(zoo: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/studies.db"
    search = {"strategies": ["heuristic_average"], "validation": 0, "storage": storage}
    for name in ("one", "two"):
        (path,) = search_families(recipe(zoo, tmp_path / name, search)).paths
        # As after a kill: the trials stand, the stage does not.
        (tmp_path / name / "stages/search-1/manifest.json").unlink()
        search_families(recipe(zoo, tmp_path / name, search))
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
        search_families(recipe(zoo, tmp_path / "run", search))
    assert not (tmp_path / "run").exists()


def test_a_study_that_cannot_be_written_is_a_note_in_the_report(zoo: Path, tmp_path: Path) -> None:
    search = {"strategies": ["heuristic_average"], "validation": 0}
    config = recipe(zoo, tmp_path / "run", search)
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
    config = recipe(zoo, tmp_path / "run", search, models=names, base=names[0])
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
    config = recipe(zoo, tmp_path / "run", {"strategy": "data_flow", "most_layers": 1})
    with pytest.raises(ConfigError, match=r"most_layers is 1, and base, ft-a, ft-b have 2"):
        glue(config)
    assert not (tmp_path / "run").exists()


def test_where_no_model_can_be_scored_the_error_says_why(zoo: Path, tmp_path: Path) -> None:
    names = []
    for seed in (1, 2):
        path = tmp_path / f"broken-{seed}"
        tiny.save_variant(zoo / "models/base", path, seed=seed)
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[:-4] + b"\x00\x00\xc0\x7f")
        names.append(str(path))
    search = {"strategies": ["heuristic_average"], "validation": 0}
    config = recipe(zoo, tmp_path / "run", search, models=names, threshold=-1)
    with pytest.raises(EvaluationError, match="no model of the family can be scored"):
        search_families(config)
