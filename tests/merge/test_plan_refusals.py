"""What a plan refuses, all of it at once, and what it notes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hollow
import pytest
from hollow import llama
from peft import LoraConfig, get_peft_model
from plans import UP, names, piece, plan_of, tensor
from transformers import AutoModelForCausalLM

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import (
    CheckpointNotFound,
    MergeError,
    NotMergeable,
    ShapeMismatch,
    UnsupportedCheckpoint,
)
from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.heads import Heads
from modelglue.merge.plan.merge_plan import make_plan

# What does not fit


def test_all_models_that_are_not_there_are_told_at_once(zoo: list[Path], tmp_path: Path) -> None:
    gone = [str(tmp_path / name) for name in ("x", "y", "z")]
    with pytest.raises(CheckpointNotFound) as caught:
        plan_of("ties", models=[str(zoo[0]), *gone[:2]], base_model=gone[2])
    assert all(name in str(caught.value) for name in gone)


def test_all_tensors_that_do_not_fit_are_told_at_once(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 2)
    tensors = hollow.llama(2)
    tensors[UP.format(0)] = (7, 4)
    tensors[UP.format(1)] = (6, 5)
    b = hollow.save(tmp_path / "b", tensors)
    with pytest.raises(ShapeMismatch) as caught:
        plan_of("linear", models=names([a, b]))
    told = str(caught.value)
    assert f"{UP.format(0)}: b has [7, 4], a has [6, 4]" in told
    assert f"{UP.format(1)}: b has [6, 5], a has [6, 4]" in told
    del tensors["model.norm.weight"]
    c = hollow.save(tmp_path / "c", tensors)
    with pytest.raises(MergeError, match=r"norm\.weight: a has it, c lacks it") as mixed:
        plan_of("linear", models=names([a, c]))
    assert "[7, 4]" in str(mixed.value)


def test_a_tensor_that_the_output_would_lose_is_refused(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 2)
    b = hollow.save(tmp_path / "b", {**hollow.llama(2), "model.layers.1.extra.weight": (2,)})
    with pytest.raises(NotMergeable, match=r"layers\.1\.extra\.weight: b has it, a lacks it"):
        plan_of("linear", models=names([a, b]))
    slices = [{"sources": [piece(a, 1, 2), piece(b, 1, 2)]}]
    with pytest.raises(NotMergeable, match=r"layers\.1\.extra\.weight: b has it"):
        plan_of("linear", slices=slices)
    plan_of("linear", slices=[{"sources": [piece(a, 0, 1), piece(b, 0, 1)]}])


def test_buffers_of_old_files_are_left_out_where_not_all_have_them(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 1)
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    b = hollow.save(tmp_path / "b", {**hollow.llama(1), buffer: (2,)})
    for models in ([a, b], [b, a]):
        assert buffer not in plan_of("linear", models=names(models)).layout


def test_weights_that_are_no_floats_are_refused_and_masks_copied(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 1, dtype={UP.format(0): "I8"})
    with pytest.raises(UnsupportedCheckpoint, match="stored as I8"):
        plan_of("linear", models=[str(a)])
    tensors = {**hollow.llama(1), "model.mask": (4,)}
    b = hollow.save(tmp_path / "b", tensors, dtype={"model.mask": "BOOL"})
    assert tensor(plan_of("linear", models=[str(b)], dtype="float32"), "model.mask").copied


# Settings

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model_type", ("llama", "mistral")),
        ("architectures", (["LlamaForCausalLM"], ["MistralForCausalLM"])),
        ("num_attention_heads", (4, 8)),
        ("num_key_value_heads", (2, 4)),
        ("head_dim", (8, 4)),
        ("encoder_attention_heads", (4, 2)),
    ],
)
@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_models_whose_entries_mean_different_things_are_refused_unless_that_is_allowed(
    tmp_path: Path, key: str, values: tuple[Any, Any], method: str
) -> None:
    a, b = (hollow.save(tmp_path / n, 4, **HEADS | {key: v}) for n, v in zip("ab", values))
    layers = [{"sources": [piece(a, 0, 2)]}, {"sources": [piece(b, 2, 4)]}]
    what = {"models": names([a, b])} if method == "linear" else {"slices": layers}
    config = parse_config({"merge_method": method, **what})
    with pytest.raises(NotMergeable, match=rf"^{key}: .* in a, .* in b\..*--allow-crimes"):
        make_plan(config)
    (note,) = make_plan(config, allow_crimes=True).notes
    assert key in note


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("rope_theta", (1e4, 5e5)),
        ("hidden_act", ("silu", "gelu")),
        ("sliding_window", (512, 1024)),
        ("rms_norm_eps", (1e-5, 1e-6)),
    ],
)
def test_settings_under_which_weights_are_used_otherwise_are_noted(
    tmp_path: Path, key: str, values: tuple[Any, Any]
) -> None:
    a, b = (hollow.save(tmp_path / n, **{key: v}) for n, v in zip("ab", values))
    (note,) = plan_of("linear", models=names([a, b])).notes
    assert note.startswith("the output's config.json is that of a: ")


def test_what_a_configuration_leaves_out_is_not_compared(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", model_type=None)
    b = hollow.save(tmp_path / "b", rope_theta=1e6, rope_parameters="unknown", **HEADS)
    assert plan_of("linear", models=names([a, b])).notes == ()


def test_a_base_that_only_lends_its_configuration_is_compared_as_well(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", **HEADS)
    b = hollow.save(tmp_path / "b", **HEADS | {"num_attention_heads": 8})
    with pytest.raises(NotMergeable, match="num_attention_heads: 8 in b, 4 in a"):
        plan_of("linear", models=[str(a)], base_model=str(b))


# Problems told once


def test_shapes_that_differ_in_every_layer_are_told_once(tmp_path: Path) -> None:
    wide = {name: (8, 4) if "up_proj" in name else shape for name, shape in llama(4).items()}
    a, b = hollow.save(tmp_path / "a", 4), hollow.save(tmp_path / "b", wide)
    with pytest.raises(ShapeMismatch) as caught:
        plan_of("linear", models=names([a, b]))
    assert str(caught.value).startswith(
        f"{UP.format(0)} (and 3 like it): b has [8, 4], a has [6, 4]."
    )


def test_a_stack_that_is_not_clear_is_told_alone_and_what_to_do_about_it(tmp_path: Path) -> None:
    tensors = {"shared.weight": (8, 4)}
    for stack in ("encoder", "decoder"):
        tensors |= {f"{stack}.block.{i}.layer.0.wi.weight": (4, 4) for i in range(4)}
    model = hollow.save(tmp_path / "t5", tensors, num_layers=4, num_decoder_layers=4)
    with pytest.raises(NotMergeable) as caught:
        plan_of("passthrough", slices=[{"sources": [piece(model, 0, 2)]}])
    assert str(caught.value).startswith("slices: it is not clear which layers of ")
    assert "modules: {encoder: …, decoder: …}" in str(caught.value)


def test_layers_that_a_configuration_cannot_tell_are_told_with_all_else(tmp_path: Path) -> None:
    a = hollow.save(tmp_path / "a", 4, first_k_dense_replace=2)
    wide = {name: (8, 4) if "up_proj" in name else shape for name, shape in llama(4).items()}
    b = hollow.save(tmp_path / "b", wide)
    runs = [[piece(a, 0, 3), piece(b, 0, 3)], [piece(a, 0, 2), piece(b, 0, 2)]]
    with pytest.raises(MergeError) as caught:
        plan_of("linear", slices=[{"sources": run} for run in runs], parameters={"weight": 1})
    assert "up_proj.weight (and 4 like it): b has [8, 4]" in str(caught.value)
    assert "first_k_dense_replace is 2" in str(caught.value)


def test_a_head_without_a_place_is_refused(tmp_path: Path) -> None:
    a = Checkpoint.open(hollow.save(tmp_path / "a"))
    heads = Heads([a], a)
    assert "lm_head.weight: some models have it" in str(heads.lost(["model.norm.weight"]))
    assert heads.lost(a.tensors) is None


# Where models are


def test_what_cannot_be_opened_names_its_key_and_all_is_told(
    tmp_path: Path, zoo: list[Path]
) -> None:
    entries = [
        {"model": str(zoo[0]), "parameters": {"statistics": "no-statistics"}},
        {"model": "no-model", "parameters": {"statistics": str(zoo[1])}},
    ]
    config = {"merge_method": "fisher", "models": entries, "tokenizer_source": "no-tokenizer"}
    with pytest.raises(CheckpointNotFound) as caught:
        make_plan(parse_config(config, root=tmp_path))
    told = str(caught.value)
    assert "models[1].model: " in told
    assert "models[0].parameters.statistics: " in told
    assert "no-tokenizer" in told
    slices = [{"sources": [piece(zoo[0], 0, 2)]}, {"sources": [piece(tmp_path / "no", 0, 2)]}]
    with pytest.raises(CheckpointNotFound, match=r"^slices\[1\]\.sources\[0\]\.model: "):
        plan_of("passthrough", slices=slices, base_model=str(zoo[0]))
    with pytest.raises(CheckpointNotFound, match=r"^base_model: "):
        plan_of("linear", models=names(zoo[:2]), base_model=str(tmp_path / "no"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_base_beside_the_configuration_takes_an_adapter_of_the_working_folder(
    tmp_path: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "here").mkdir()
    base = make_model(tmp_path / "configs" / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "here" / "lora")
    monkeypatch.chdir(tmp_path / "here")
    config = parse_config(
        {"merge_method": "linear", "models": ["base+lora", "base"], "parameters": {"weight": 1}},
        root=tmp_path / "configs",
    )
    assert [model.ref for model in make_plan(config).models] == ["base+lora", "base"]
