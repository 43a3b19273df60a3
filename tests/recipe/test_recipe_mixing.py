"""The mixture that a recipe ends in: every level, none, and what cannot stand beside the others."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import shrunken
from modelglue.errors import ConfigError
from modelglue.mixture.bundle import Bundle
from modelglue.recipe.config import parse_recipe
from modelglue.recipe.glue import Outcome, glue
from modelglue.report.write import read_report

SEARCH = {"strategies": ["heuristic_average"], "validation": 0}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shrunken.make_zoo(tmp_path_factory.mktemp("zoo")).parent


def glued(zoo: Path, output: Path, mixture: Any) -> Outcome:
    recipe = yaml.safe_load((zoo / "glue.yaml").read_text())
    recipe |= {"output": str(output), "search": SEARCH, "mixture": mixture}
    recipe["tasks"] = [task for task in recipe["tasks"] if task["name"] in ("story", "choice")]
    return glue(parse_recipe(recipe, root=zoo))


def test_no_mixture_is_the_best_family_alone(zoo: Path, tmp_path: Path) -> None:
    outcome = glued(zoo, tmp_path / "run", "none")
    assert outcome.report.routing is None
    assert (outcome.model / "config.json").is_file()
    assert not (tmp_path / "run/stages/mixture").exists()
    rows = {row.name: row for row in outcome.report.table}
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
