"""A plan written to disk, and the same plan loaded into a live module."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import (
    ConfigError,
    NonFiniteTensor,
    NotMergeable,
    OutputExists,
    ShapeMismatch,
)
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.resident import Resident
from modelglue.merge.engine.stream import execute
from modelglue.merge.method import METHODS, Method
from modelglue.merge.plan.merge_plan import MergePlan, make_plan
from modelglue.merge.run import merge


def plan_for(models: list[Path], weights: list[float], **extra: object) -> MergePlan:
    entries = [
        {"model": str(path), "parameters": {"weight": weight}}
        for path, weight in zip(models, weights)
    ]
    return make_plan(parse_config({"merge_method": "linear", "models": entries, **extra}))


def plan_with(method: str, models: list[Path], base: Path, **extra: Any) -> MergePlan:
    """A merge by any method, of as many models as it takes."""
    definition = METHODS[method]
    count = definition.models[1] or 3
    if definition.base == "first":
        count -= 1
    settings: dict[str, Any] = {}
    for parameter in definition.parameters:
        if parameter.name == "density":
            settings["density"] = 0.6
        elif parameter.name == "statistics":
            kind = "gram" if definition.statistics == "gram" else "fisher"
            settings["statistics"] = str(base.parent / kind)
        elif parameter.name == "trim":
            settings["trim"] = "global"
    named = {"base_model": str(base)} if definition.base in ("required", "first") else {}
    return make_plan(
        parse_config(
            {
                "merge_method": method,
                "models": [
                    {"model": str(path), "parameters": weight}
                    for path, weight in zip(models[:count], weights_of(definition))
                ],
                "parameters": settings,
                **named,
                **extra,
            }
        )
    )


def weights_of(definition: Method) -> list[dict[str, float]]:
    if definition.parameter("weight") is None:
        return [{}, {}, {}]
    return [{"weight": 0.5}, {"weight": 0.2}, {"weight": 0.4}]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"], scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three fine-tunes."""
    root = tmp_path_factory.mktemp("family")
    base = tiny.save_model(root / "base", seed=0, dtype=request.param)
    for kind in ("fisher", "gram"):
        write_statistics(base, root / kind, kind)
    tuned = [tiny.save_variant(base, root / f"ft{i}", seed=i, scale=0.01) for i in range(1, 4)]
    return [base, *tuned]


def write_statistics(model: Path, folder: Path, kind: str) -> None:
    """Positive numbers of each weight's shape, or a Gram matrix of each matrix's inputs."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, tensor in state_of(model).items():
        if kind == "fisher":
            tensors[name] = torch.rand(tensor.shape, generator=generator)
        elif tensor.dim() == 2 and "proj" in name:
            inputs = torch.randn((99, tensor.shape[1]), generator=generator)
            tensors[name] = inputs.T @ inputs
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"kind": kind}))


def state_of(path: Path) -> dict[str, torch.Tensor]:
    with Checkpoint.open(path) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_is_the_same_in_memory_on_disk_and_on_a_device(
    method: str, family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelglue.merge.chunk.CHUNK", 1000)
    base, *models = family
    plan = plan_with(method, models, base)
    written = state_of(execute(plan, tmp_path / "out", threads=3).path)
    alone = state_of(execute(plan, tmp_path / "alone", threads=1).path)
    module = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    Resident(plan, module).load()
    state = module.state_dict()
    torch_made = state_of(execute(plan, tmp_path / "torch", threads=2, device="cpu").path)
    for name, tensor in written.items():
        assert torch.equal(tensor, alone[name]), f"{name}: threads"
        assert torch.equal(tensor, state[name]), f"{name}: in memory"
        # One unit in bfloat16's last place, where a sum lies at the edge of rounding.
        tolerance = 1e-6 if tensor.dtype == torch.float32 else 2e-3
        assert torch.allclose(
            tensor.float(), torch_made[name].float(), atol=1e-6, rtol=tolerance * 4
        ), f"{name}: on a device"


@pytest.mark.parametrize("method", list(METHODS))
def test_the_output_of_every_method_loads_and_generates(
    method: str, family: list[Path], tmp_path: Path
) -> None:
    out = execute(plan_with(method, family[1:], family[0]), tmp_path / "out").path
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(out)("hello", return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert made.shape[1] > ids.input_ids.shape[1]


def test_a_resident_merge_with_all_weight_on_one_model_is_that_model(llamas: list[Path]) -> None:
    module = AutoModelForCausalLM.from_pretrained(llamas[0])
    resident = Resident(plan_for(llamas, [1.0] * 4), module)
    for index, path in enumerate(llamas):
        resident.load(plan_for(llamas, [float(i == index) for i in range(4)]))
        with Checkpoint.open(path) as checkpoint:
            for name, tensor in module.state_dict().items():
                if name in checkpoint.tensors:
                    assert torch.equal(checkpoint.read(name), tensor)


def test_names_that_a_module_does_not_have_are_merged_into_parts_of_its_tensors(
    tmp_path: Path,
) -> None:
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 1}
    models = [
        tiny.save_model(tmp_path / f"m{i}", seed=i, model_type="mixtral", **sizes) for i in range(2)
    ]
    load = AutoModelForCausalLM.from_pretrained
    module = load(models[0])
    plan = plan_for(models, [0.25, 0.75])
    Resident(plan, module).load()
    a, b = (load(path).state_dict() for path in models)
    for name, tensor in module.state_dict().items():
        assert torch.allclose(tensor, 0.25 * a[name] + 0.75 * b[name], atol=1e-6)
    written = load(execute(plan, tmp_path / "out").path)
    for name, tensor in written.state_dict().items():
        assert torch.allclose(tensor, module.state_dict()[name], atol=1e-6)


def test_the_output_generates_and_says_where_it_comes_from(
    llamas: list[Path], tmp_path: Path
) -> None:
    out = merge(plan_for(llamas[1:], [1, 1, 1], base_model=str(llamas[0])), tmp_path / "out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tokenizer("hello", return_tensors="pt")
    assert (
        model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] > ids.input_ids.shape[1]
    )
    card = (out / "README.md").read_text()
    for path in llamas[1:]:
        with Checkpoint.open(path) as source:
            assert (source.known_fingerprint() or "not computed") in card
    assert "merge_method: linear" in card


def test_a_tied_head_is_read_from_the_embedding(tmp_path: Path) -> None:
    tied = tiny.save_model(tmp_path / "tied", seed=0, tie_word_embeddings=True)
    untied = tiny.save_model(tmp_path / "untied", seed=1, tie_word_embeddings=False)
    out = execute(plan_for([untied, tied], [0.5, 0.5]), tmp_path / "out").path
    with Checkpoint.open(tied) as a, Checkpoint.open(untied) as b, Checkpoint.open(out) as merged:
        expected = (a.read("model.embed_tokens.weight") + b.read("lm_head.weight")) / 2
        assert torch.allclose(merged.read("lm_head.weight"), expected, atol=1e-7)


def test_an_untied_head_is_not_lost_in_a_tied_template(tmp_path: Path) -> None:
    tied = tiny.save_model(tmp_path / "tied", seed=0, tie_word_embeddings=True)
    untied = tiny.save_model(tmp_path / "untied", seed=1, tie_word_embeddings=False)
    out = execute(plan_for([tied, untied], [0.5, 0.5]), tmp_path / "out").path
    with Checkpoint.open(tied) as a, Checkpoint.open(untied) as b:
        expected = (a.read("model.embed_tokens.weight") + b.read("lm_head.weight")) / 2
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.allclose(model.lm_head.weight, expected, atol=1e-7)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_shapes_that_differ_are_named(tmp_path: Path) -> None:
    a = tiny.save_model(tmp_path / "a")
    b = tiny.save_model(tmp_path / "b", intermediate_size=72)
    with pytest.raises(ShapeMismatch, match=r"mlp.*: b has \[.*72.*\], a has"):
        plan_for([a, b], [1, 1])


def test_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    a = tiny.save_model(tmp_path / "a")
    b = tiny.save_model(tmp_path / "b", num_hidden_layers=5)
    with pytest.raises(NotMergeable, match=r"layers\.4"):
        plan_for([a, b], [1, 1])


def test_a_vocabulary_of_other_tokens_is_refused(tmp_path: Path) -> None:
    a, b = (tiny.save_model(tmp_path / name) for name in "ab")
    tokenizer = (b / "tokenizer.json").read_text()
    (b / "tokenizer.json").write_text(tokenizer.replace('"a":', '"zz":'))
    with pytest.raises(NotMergeable, match="vocabular"):
        plan_for([a, b], [1, 1])


def test_weights_that_sum_to_nothing_are_refused_before_any_work(llamas: list[Path]) -> None:
    with pytest.raises(ConfigError, match="sum to 0"):
        plan_for(llamas[:2], [1, -1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named_and_nothing_stays(
    llamas: list[Path], tmp_path: Path, value: float
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llamas[1], broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteTensor, match=r"model\.norm\.weight: broken holds .*\(1 of"):
        execute(plan_for([llamas[0], broken], [0.5, 0.5]), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_result_that_does_not_fit_its_dtype_is_refused(tmp_path: Path) -> None:
    models = [tiny.save_model(tmp_path / f"m{i}", seed=i) for i in range(2)]
    for path in models:
        tensors = load_file(path / "model.safetensors")
        tensors["model.norm.weight"][0] = 1e5
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteTensor, match="does not fit F16"):
        execute(plan_for(models, [1, 1], dtype="float16"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there_is_left_alone(llamas: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        execute(plan_for(llamas[:2], [1, 1]), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
