"""`--dry-run`: everything of a plan is there, and what is alike is there once."""

import io
from pathlib import Path
from typing import Any

import hollow
import pytest
from rich.console import Console

from modelglue.cli.app import app
from modelglue.errors import NotMergeable
from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.merge_plan import make_plan
from modelglue.merge.run import merge
from modelglue.report.plan_tables import constant, folded, print_plan


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    for name in ("base", "a", "b"):
        hollow.save(tmp_path / name, 12)
    return tmp_path


def plan(root: Path, method: str, **config: Any) -> dict[str, Any]:
    parsed = parse_config({"merge_method": method, **config}, root=root)
    return make_plan(parsed).describe()


def printed(described: dict[str, Any]) -> str:
    file = io.StringIO()
    print_plan(described, Console(file=file, width=120, color_system=None))
    return file.getvalue()


def line(text: str, start: str) -> list[str]:
    """The words of the only line that begins so."""
    (found,) = [one.split() for one in text.splitlines() if one.strip().startswith(start)]
    return found


def test_layers_that_are_alike_are_one_line_with_how_many_they_are(zoo: Path) -> None:
    text = printed(plan(zoo, "ties", base_model="base", models=["a", "b"]))
    up = line(text, "model.layers.{0–11}.mlp.up_proj.weight")
    assert up[1:] == ["12", "6×4", "BF16", "a,", "b", "on", "base"]
    assert line(text, "model.norm.weight")[1] == "1"
    assert "39 tensors" in text


def test_every_tensor_is_in_one_fold(zoo: Path) -> None:
    described = plan(zoo, "linear", models=["a", "b"])
    names = [tensor["name"] for fold in folded(described["tensors"]) for tensor in fold.tensors]
    assert sorted(names) == sorted(tensor["name"] for tensor in described["tensors"])


def test_layers_of_other_models_stand_apart_with_their_numbers_there(zoo: Path) -> None:
    slices = [
        {"sources": [{"model": "a", "layer_range": [0, 8]}]},
        {"sources": [{"model": "b", "layer_range": [4, 12]}]},
    ]
    text = printed(plan(zoo, "passthrough", slices=slices))
    assert line(text, "model.layers.{0–7}.mlp.up_proj")[4:] == ["a"]
    assert line(text, "model.layers.{8–15}.mlp.up_proj")[4:] == ["b:", "layers.{4–11}"]


def test_a_repeated_layer_is_told(zoo: Path) -> None:
    one = {"sources": [{"model": "a", "layer_range": [3, 4]}]}
    text = printed(plan(zoo, "passthrough", slices=[one, one]))
    assert line(text, "model.layers.0.mlp.up_proj")[4:] == ["a:", "layers.3"]
    assert line(text, "model.layers.1.mlp.up_proj")[4:] == ["a:", "layers.3"]


def test_what_holds_everywhere_is_said_once_and_what_varies_beside_its_tensors(zoo: Path) -> None:
    models = [
        {"model": "a", "parameters": {"weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 2}]}}
    ]
    models.append({"model": "b", "parameters": {"weight": 0.25}})
    described = plan(
        zoo, "ties", base_model="base", models=models, parameters={"density": 0.5, "lambda": 0.75}
    )
    assert constant(described["tensors"])["density"] == (0.5, 0.5)
    assert "weight" not in constant(described["tensors"])
    text = printed(described)
    assert line(text, "density") == ["density", "0.5", "each"]
    assert line(text, "lambda") == ["lambda", "0.75"]
    assert "weight 2, 0.25" in text
    course = " ".join(text.split())
    assert "weight 0 → 0.09091 → 0.1818 → … → 1, 0.25" in course


@pytest.mark.parametrize(
    ("method", "config", "roles"),
    [
        (
            "ties",
            {"base_model": "base", "models": ["a", "b"]},
            {"a": "merged", "b": "merged", "base": "base, lends config.json"},
        ),
        (
            "linear",
            {"base_model": "base", "models": ["a", "b"]},
            {"base": "named as base, lends config.json"},
        ),
        ("linear", {"models": ["a", "b"]}, {"a": "merged, lends config.json", "b": "merged"}),
        (
            "slerp",
            {"base_model": "base", "models": ["base", "a"], "parameters": {"t": 0.3}},
            {"base": "merged, named as base, lends config.json", "a": "merged"},
        ),
    ],
)
def test_models_are_shown_with_their_roles(
    zoo: Path, method: str, config: dict[str, Any], roles: dict[str, str]
) -> None:
    text = printed(plan(zoo, method, **config))
    table = text[: text.index("Tensors")]
    for name, role in roles.items():
        assert line(table, f"{name} ")[1:-1] == role.split()


@pytest.mark.parametrize(
    ("method", "parameters", "told"),
    [
        ("linear", {}, None),
        ("ties", {}, "tensor"),
        ("ties", {"trim": "global"}, "model"),
    ],
)
def test_a_first_pass_and_its_scope_are_told(
    zoo: Path, method: str, parameters: dict[str, Any], told: str | None
) -> None:
    base = {} if method == "linear" else {"base_model": "base"}
    described = plan(zoo, method, models=["a", "b"], parameters=parameters, **base)
    assert described["measured"] == told
    text = printed(described)
    assert ("first pass" in text) == (told is not None)
    assert ("whole model" in text.split("memory")[0].split("reads")[1]) == (told == "model")


def test_statistics_are_named_with_their_kind_and_beside_what_they_weigh(zoo: Path) -> None:
    for name in ("a", "b"):
        hollow.save(zoo / f"f-{name}", 12, kind="fisher", tokens=12345)
    models = [{"model": n, "parameters": {"statistics": f"f-{n}"}} for n in ("a", "b")]
    described = plan(zoo, "fisher", models=models)
    assert [(one["name"], one["kind"]) for one in described["statistics"]] == [
        ("f-a", "fisher"),
        ("f-b", "fisher"),
    ]
    text = printed(described)
    assert line(text, "f-a")[:3] == ["f-a", "fisher", "12,345"]
    assert line(text, "model.norm.weight")[4:] == ["a,", "b,", "by", "f-a,", "f-b"]


def test_what_is_only_copied_says_so(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": (8, 4), "model.layers.0.mask": (4,)}
    for name in "ab":
        hollow.save(tmp_path / name, tensors, dtype={"model.layers.0.mask": "I64"})
    text = printed(plan(tmp_path, "linear", models=["a", "b"]))
    assert line(text, "model.layers.0.mask")[4:] == ["a,", "copied"]


def test_a_plan_of_very_many_kinds_of_tensors_is_cut_and_says_so(tmp_path: Path) -> None:
    tensors = {f"part{'x' * i}.weight": (1, 4) for i in range(100)}
    hollow.save(tmp_path / "a", tensors)
    text = printed(plan(tmp_path, "linear", models=["a"]))
    assert "100 tensors; 40 of them are not shown here" in text


def test_names_with_braces_and_markup_are_printed_as_they_are(tmp_path: Path) -> None:
    hollow.save(tmp_path / "a", {"odd.{0}.[red]w": (1, 4), "odd.{1}.3.[red]w": (1, 4)})
    text = printed(plan(tmp_path, "linear", models=["a"]))
    assert "odd.{0}.[red]w" in text
    assert "odd.{1}.3.[red]w" in text


def test_other_heads_are_merged_by_command_only_if_that_is_allowed(tmp_path: Path) -> None:
    for name, heads in (("a", 4), ("b", 8)):
        hollow.save(tmp_path / name, num_attention_heads=heads)
    file = tmp_path / "merge.yml"
    file.write_text("merge_method: linear\nmodels: [a, b]\n")
    with pytest.raises(NotMergeable, match="num_attention_heads: 4 in a, 8 in b"):
        app(["merge", str(file), str(tmp_path / "out")], standalone_mode=False)
    command = ["merge", str(file), str(tmp_path / "out"), "--allow-crimes", "--dry-run"]
    app(command, standalone_mode=False)
    assert merge(file, tmp_path / "merged", allow_crimes=True).exists()
