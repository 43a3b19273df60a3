"""Every merge method in a recipe: searched with, written, and named in the report."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import shrunken
from modelglue.calibrate.compute import compute_statistics
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import ConfigError
from modelglue.merge.method import METHODS
from modelglue.recipe.config import load_recipe, parse_recipe
from modelglue.recipe.formula import Formula
from modelglue.recipe.glue import glue
from modelglue.report.write import read_report

MODELS = ["ft-a", "ft-b", "ft-c"]
PARAMETERS: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.5, "trim": "global"},
    "dare_ties": {"density": {"ft-a": 0.4, "ft-b": 0.6, "ft-c": 0.5}},
    "della": {"density": 0.5},
    "breadcrumbs": {"density": 0.8},
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shrunken.make_zoo(tmp_path_factory.mktemp("zoo")).parent


@pytest.fixture(scope="module")
def statistics(zoo: Path) -> dict[str, dict[str, str]]:
    """Kind → model → its checkpoint of statistics."""
    return {
        kind: {
            name: str(
                compute_statistics(
                    zoo / "models" / name,
                    [" ".join(shrunken.WORDS)] * 3,
                    zoo / f"{name}.{kind}",
                    kind=kind,
                )
            )
            for name in MODELS
        }
        for kind in ("fisher", "gram")
    }


@pytest.mark.parametrize("method", list(METHODS))
def test_a_recipe_can_name_any_method(
    method: str, zoo: Path, statistics: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    parameters = dict(PARAMETERS.get(method, {}))
    for kind, name in (("fisher", "fisher"), ("gram", "regmean")):
        if method == name:
            parameters["statistics"] = statistics[kind]
    recipe = yaml.safe_load((zoo / "glue.yaml").read_text()) | {
        "models": [f"models/{name}" for name in MODELS],
        "merge": {"method": method, "parameters": parameters},
        "search": {
            "strategies": ["heuristic_average", "heuristic_similarity"],
            "validation": 0,
        },
        "output": str(tmp_path / "run"),
    }
    recipe["tasks"] = [task for task in recipe["tasks"] if task["name"] == "story"]
    config = parse_recipe(recipe, root=zoo)
    outcome = glue(config)
    report = read_report(outcome.path)
    assert report.merge == config.merge.words()
    assert report.merge.startswith(method)
    used = [model for model in report.models if model.fate in ("merged", "expert")]
    most = config.merge.most
    assert 1 <= len(used) <= (most or len(MODELS))
    with Checkpoint.open(outcome.model) as written:
        assert written.tensors


def test_the_merge_section_is_checked_with_everything_else(zoo: Path) -> None:
    recipe = yaml.safe_load((zoo / "glue.yaml").read_text()) | {
        "merge": {
            "method": "ties",
            "parameters": {"desnity": 0.5, "weight": 1, "density": {"ft-a": 2.0, "ft-x": 0.5}},
            "methd": 1,
        }
    }
    del recipe["base"]
    with pytest.raises(ConfigError) as caught:
        parse_recipe(recipe, root=zoo)
    text = str(caught.value)
    for words in (
        'merge.methd: unknown key; did you mean "method"?',
        'merge.parameters.desnity: ties has no such parameter; did you mean "density"?',
        "merge.parameters.weight: the search chooses it",
        "merge.parameters.density.ft-x: no such model",
        "merge.parameters.density: ft-b lacks its own",
        "merge.parameters.density.ft-a: 2.0 is above 1",
        "base: ties needs the model that the others come from",
    ):
        assert words in text


def test_what_was_asked_reads_back_the_same(zoo: Path) -> None:
    recipe = yaml.safe_load((zoo / "glue.yaml").read_text())
    recipe["merge"] = {"method": "ties", "parameters": {"density": [0.2, 0.8], "lambda": 0.7}}
    config = parse_recipe(recipe, root=zoo)
    again = parse_recipe(
        {k: v for k, v in config.to_mapping().items() if k != "root"}, root=config.root
    )
    assert again.merge == config.merge


def test_coefficients_that_give_one_merge_have_one_spelling() -> None:
    stock, slerp = Formula("model_stock"), Formula("slerp")
    assert stock.canonical({"a": 0.3, "b": 0.7}) == stock.canonical({"b": 0.1, "a": 0.9})
    assert slerp.canonical({"a": 0.3, "b": 0.7}) != slerp.canonical({"a": 0.7, "b": 0.3})
    fusion = Formula("arcee_fusion")
    assert fusion.canonical({"a": 0.3, "b": 0.7}) == fusion.canonical({"a": 0.1, "b": 0.9})
    assert fusion.base({"a": 0.25, "b": 0.75}) == "b"


def test_a_recipe_without_the_section_merges_linearly(zoo: Path) -> None:
    assert load_recipe(zoo / "glue.yaml").merge == Formula("linear")
