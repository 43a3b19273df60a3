"""The mixture that a recipe ends in: every level, none, and what cannot stand beside the others."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import shrunken
from modelglue.errors import ConfigError
from modelglue.evaluate.file_task import FileTask
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.journal import read_json
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.router_scores import NearestRouter
from modelglue.recipe.choose import prompts_of
from modelglue.recipe.config import RecipeConfig, parse_recipe
from modelglue.recipe.estimate import estimate
from modelglue.recipe.glue import Outcome, glue
from modelglue.recipe.inputs import open_inputs
from modelglue.recipe.mixture_config import FinalMixture
from modelglue.report.write import read_report

SEARCH = {"strategies": ["heuristic_average"], "validation": 0}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shrunken.make_zoo(tmp_path_factory.mktemp("zoo")).parent


def recipe_of(zoo: Path, **keys: Any) -> RecipeConfig:
    recipe = yaml.safe_load((zoo / "glue.yaml").read_text()) | {"search": SEARCH} | keys
    recipe["tasks"] = [task for task in recipe["tasks"] if task["name"] in ("story", "choice")]
    return parse_recipe(recipe, root=zoo)


def glued(zoo: Path, output: Path, mixture: Any) -> Outcome:
    return glue(recipe_of(zoo, output=str(output), mixture=mixture))


def test_no_mixture_is_the_best_family_alone(zoo: Path, tmp_path: Path) -> None:
    outcome = glued(zoo, tmp_path / "run", "none")
    assert outcome.report.routing is None
    assert (outcome.model / "config.json").is_file()
    assert not (tmp_path / "run/stages/mixture").exists()
    # Nor is one made to be compared with: every expert would be written to the disk for it.
    assert not (tmp_path / "run/stages/unmerged").exists()
    rows = {row.name: row for row in outcome.report.table}
    assert "mixture without merging" not in rows
    kept = [name for name in rows if rows[name].kind == "heuristic"]
    assert rows["glued model"].average in {rows[name].average for name in (*kept, "foreign")}


@pytest.mark.parametrize(
    "kind", ["F-L-T", "F-M-S", "B-L-S", {"level": "model", "shared_layers": 1}]
)
def test_models_of_a_family_can_be_mixed_inside_of_one_checkpoint(
    kind: Any, zoo: Path, tmp_path: Path
) -> None:
    own = kind if isinstance(kind, dict) else {}
    level = {"F": "ffn", "B": "block"}.get(kind[0]) if isinstance(kind, str) else None
    words = own or {
        "level": level,
        "router": {"L": "linear", "M": "mlp"}[kind[2]],
        "input": {"T": "token", "S": "sample"}[kind[4]],
    }
    outcome = glued(zoo, tmp_path / "run", {**words, "experts": "models"})
    report = read_report(outcome.path)
    experts = [model.name for model in report.models if model.fate == "expert"]
    assert "foreign" not in experts  # another architecture, and said so
    if len(experts) > 1:
        assert (outcome.model / "config.json").is_file()
        assert report.routing is not None
        assert list(report.routing.experts) == experts
    assert any("foreign is no expert of this mixture" in note for note in report.notes) or (
        "foreign" not in {row.note for row in report.table}
    )
    assert (outcome.path / "report.html").is_file()


def test_experts_can_answer_together(zoo: Path, tmp_path: Path) -> None:
    outcome = glued(zoo, tmp_path / "run", {"level": "model", "top_k": 2})
    assert Bundle.load(outcome.model).top_k == 2


def test_a_router_can_be_made_of_what_the_experts_scored(zoo: Path, tmp_path: Path) -> None:
    search = {**SEARCH, "strategies": ["heuristic_coefficient"]}
    config = recipe_of(zoo, output=str(tmp_path / "run"), search=search)
    outcome = glue(replace(config, mixture=FinalMixture(initialisation="knn")))
    bundle = Bundle.load(outcome.model)
    assert bundle.experts == ("merged-1", "foreign")
    assert isinstance(bundle.router, NearestRouter)
    # The merge was made for one of the tasks; it is known at the other, too, and the rows are the
    # items, each beside its own text.
    assert any("refine" in path.name for path in (outcome.path / "stages").iterdir())
    tasks = [task.open() for task in recipe_of(zoo).tasks]
    texts = [prompt for task in tasks for prompt in prompts_of(task, "search")]
    assert torch.equal(bundle.router.items, bundle.features(texts))
    for place in range(2):
        alone = [task.evaluate(bundle.expert(place), "search").values for task in tasks]
        expected = torch.tensor([value for values in alone for value in values])
        assert torch.allclose(bundle.router.scores[:, place], expected, atol=1e-5)
    told = " ".join(outcome.report.notes)
    assert f"scores of 2 experts on {len(texts)} search items" in told
    # Both have prompts in the recipe.
    assert "prompts given for merged-1, foreign are not used" in told
    made = read_json(outcome.path / "stages/mixture/manifest.json")
    assert (made["initialisation"], made["table"]) == ("knn", [len(texts), 2])
    assert made["items"]["items"] == len(texts)


def test_routers_inside_of_a_checkpoint_can_be_made_of_scores(zoo: Path, tmp_path: Path) -> None:
    mixture = {"level": "block", "initialisation": "knn", "experts": "models"}
    config = recipe_of(zoo, output=str(tmp_path / "run"), mixture=mixture)
    # A task at which another model leads, so that there are two experts.
    config = replace(config, tasks=(*config.tasks, task_led_by(zoo, "drifted", tmp_path)))
    outcome = glue(config)
    assert outcome.report.routing is not None
    experts = outcome.report.routing.experts
    assert "drifted" in experts
    made = read_json(outcome.path / "stages/mixture/manifest.json")
    assert made["table"] == [24, len(experts)]


def task_led_by(zoo: Path, name: str, folder: Path) -> Any:
    """Questions whose answer is what a model of the zoo finds likeliest."""
    model = HuggingFaceModel.load(zoo / "models" / name)
    files = {}
    for number, split in enumerate(("search", "report")):
        rng = random.Random(number)
        rows = [
            {
                "id": f"led-{split}-{i}",
                **shrunken.choice(model, f"led {split} {i}", rng.sample(shrunken.WORDS, 4)),
            }
            for i in range(8)
        ]
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "led", "kind": "multiple_choice", "metric": "acc", **files}
    return FileTask.from_mapping(task, root=folder).config


@pytest.mark.parametrize(
    ("mixture", "stages", "experts"),
    [
        # Prompts bring in who leads at no task.
        ({"initialisation": "discriminant"}, True, 4),
        ({"initialisation": "knn"}, True, 2),
        ("none", False, 0),
    ],
)
def test_a_run_is_estimated_with_the_mixture_that_it_ends_in(
    zoo: Path, mixture: Any, stages: bool, experts: int
) -> None:
    config = recipe_of(zoo, mixture=mixture)
    with open_inputs(config) as inputs:
        found = {stage.stage: stage for stage in estimate(config, inputs)}
    for stage in ("mixture", "unmerged"):
        assert (stage in found) == stages
    if stages:
        assert found["mixture"].text == f"a router over at most {experts}"


def test_a_mixture_that_no_family_can_have_is_refused_before_any_work(
    zoo: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"(?s)^mixture: .*shared_layers: 7 of 2 layers"):
        glued(zoo, tmp_path / "run", {"level": "block", "shared_layers": 7})
    assert not (tmp_path / "run").exists()


def test_more_experts_may_be_asked_for_than_there_are(zoo: Path, tmp_path: Path) -> None:
    kind = {"level": "ffn", "top_k": 3, "experts": "models"}
    report = glued(zoo, tmp_path / "run", kind).report
    assert len([model for model in report.models if model.fate == "expert"]) == 2
