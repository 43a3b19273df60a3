"""A plan written to disk, a plan loaded into a live module, and what mergekit made of the same."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import (
    MergeError,
    NonFiniteTensor,
    NotMergeable,
    OutputExists,
    ShapeMismatch,
)
from modelglue.merge.chunks import row_chunks
from modelglue.merge.config import parse_config
from modelglue.merge.plan import MergePlan, make_plan
from modelglue.merge.resident import Resident
from modelglue.merge.run import merge
from modelglue.merge.stream import execute

GOLDEN = Path(__file__).parents[1] / "golden"


def plan_for(models: list[Path], weights: list[float], **extra: object) -> MergePlan:
    entries = [
        {"model": str(path), "parameters": {"weight": weight}}
        for path, weight in zip(models, weights)
    ]
    return make_plan(parse_config({"merge_method": "linear", "models": entries, **extra}))


@pytest.mark.parametrize("name", ["linear", "linear_unnormalized"])
def test_a_merge_agrees_with_mergekit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(GOLDEN)
    out = merge(f"configs/{name}.yml", tmp_path / "out")
    expected = load_file(GOLDEN / "expected" / f"{name}.safetensors")
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        assert (found[tensor].float() - value.float()).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_executors_agree_to_the_bit(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelglue.merge.chunks.CHUNK", 1000)
    models = [tiny.save_model(tmp_path / f"m{i}", seed=i, dtype=dtype) for i in range(3)]
    plan = plan_for(models, [0.5, 0.2, 0.4])
    assert any(len(list(row_chunks(tensor))) > 3 for tensor in plan.tensors)
    module = AutoModelForCausalLM.from_pretrained(models[0], dtype=dtype)
    resident = Resident(plan, module)
    resident.load([0.5, 0.2, 0.4])
    with Checkpoint.open(execute(plan, tmp_path / "out", threads=3)) as written:
        state = module.state_dict()
        for name in written.tensors:
            assert torch.equal(written.read(name), state[name]), name


def test_a_resident_merge_with_all_weight_on_one_model_is_that_model(llamas: list[Path]) -> None:
    module = AutoModelForCausalLM.from_pretrained(llamas[0])
    resident = Resident(plan_for(llamas, [1.0] * 4), module)
    for index, path in enumerate(llamas):
        resident.load([float(i == index) for i in range(4)])
        with Checkpoint.open(path) as checkpoint:
            for name, tensor in module.state_dict().items():
                if name in checkpoint.tensors:
                    assert torch.equal(checkpoint.read(name), tensor)


def test_names_that_a_module_does_not_have_are_merged_through_loaded_modules(
    tmp_path: Path,
) -> None:
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 1}
    models = [
        tiny.save_model(tmp_path / f"m{i}", seed=i, model_type="mixtral", **sizes) for i in range(2)
    ]
    load = AutoModelForCausalLM.from_pretrained
    module = load(models[0])
    plan = plan_for(models, [0.25, 0.75])
    resident = Resident(plan, module, load=lambda checkpoint: load(checkpoint.path))
    resident.load([0.25, 0.75])
    a, b = (load(path).state_dict() for path in models)
    for name, tensor in module.state_dict().items():
        assert torch.allclose(tensor, 0.25 * a[name] + 0.75 * b[name], atol=1e-6)
    written = load(execute(plan, tmp_path / "out"))
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
            assert source.fingerprint() in card
    assert "merge_method: linear" in card


def test_a_tied_head_is_read_from_the_embedding(tmp_path: Path) -> None:
    tied = tiny.save_model(tmp_path / "tied", seed=0, tie_word_embeddings=True)
    untied = tiny.save_model(tmp_path / "untied", seed=1, tie_word_embeddings=False)
    out = execute(plan_for([untied, tied], [0.5, 0.5]), tmp_path / "out")
    with Checkpoint.open(tied) as a, Checkpoint.open(untied) as b, Checkpoint.open(out) as merged:
        expected = (a.read("model.embed_tokens.weight") + b.read("lm_head.weight")) / 2
        assert torch.allclose(merged.read("lm_head.weight"), expected, atol=1e-7)


def test_an_untied_head_is_not_lost_in_a_tied_template(tmp_path: Path) -> None:
    tied = tiny.save_model(tmp_path / "tied", seed=0, tie_word_embeddings=True)
    untied = tiny.save_model(tmp_path / "untied", seed=1, tie_word_embeddings=False)
    with pytest.raises(NotMergeable, match=r"lm_head\.weight: untied has it"):
        plan_for([tied, untied], [0.5, 0.5])


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
    plan = plan_for(llamas[:2], [1, 1])
    with pytest.raises(MergeError, match="sum to 0"):
        plan.checked_parameters([1, -1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named_and_nothing_stays(
    llamas: list[Path], tmp_path: Path, value: float
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llamas[1], broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteTensor, match=r"model\.norm\.weight: broken holds 1"):
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


def test_chunks_cover_every_row_once(llamas: list[Path]) -> None:
    for tensor in plan_for(llamas[:2], [1, 1]).tensors:
        rows = [r for piece in row_chunks(tensor, chunk=100) for r in range(*piece.indices(10**6))]
        assert rows == list(range(tensor.shape[0]))
