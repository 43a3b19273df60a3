"""Base and adapter, held against what peft makes of them."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from modelglue.checkpoint.lora import LoraCheckpoint
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import materialise, open_checkpoint
from modelglue.errors import CheckpointError, CheckpointNotFound, UnsupportedCheckpoint
from modelglue.merge.run import merge

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

ATTENTION = ["q_proj", "v_proj"]
Merged = dict[str, torch.Tensor]


def save_adapter(base: Path, folder: Path, *, rows: int | None = None, **settings: Any) -> Merged:
    """Save an adapter with random weights; returns what peft merges.

    With `rows` the vocabulary is resized to as many before.
    """
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ATTENTION, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        generator = torch.Generator().manual_seed(7)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.data.add_(0.1 * noise)
        adapted.save_pretrained(folder)
        return {
            name: tensor.clone() for name, tensor in adapted.merge_and_unload().state_dict().items()
        }


def assert_equal_to(checkpoint: Checkpoint, merged: Merged) -> None:
    for name in checkpoint.tensors:
        torch.testing.assert_close(checkpoint.read(name), merged[name], rtol=0, atol=2e-7)


@pytest.fixture(scope="module")
def base(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    # More rows than one block of deltas in the embedding.
    return make_model(tmp_path_factory.mktemp("lora") / "base", vocab_size=600)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"use_rslora": True}, id="rslora"),
        pytest.param(
            {
                "rank_pattern": {"layers.1.self_attn.q_proj": 2},
                "alpha_pattern": {"layers.2.self_attn.v_proj": 3, r".*\.3\..*": 5},
            },
            id="patterns",
        ),
        pytest.param({"target_modules": ["embed_tokens", "q_proj"]}, id="embedding"),
        pytest.param({"modules_to_save": ["lm_head", "norm"]}, id="modules-to-save"),
        pytest.param({"target_modules": "all-linear"}, id="all-linear"),
        pytest.param({"use_dora": True}, id="dora"),
        pytest.param({"init_lora_weights": "gaussian"}, id="gaussian"),
    ],
)
def test_every_tensor_equals_what_peft_merges(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    merged = save_adapter(base, tmp_path / "adapter", **settings)
    assert_equal_to(open_checkpoint(f"{base}+{tmp_path / 'adapter'}"), merged)


VOCABULARY = ["embed_tokens", "lm_head"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        pytest.param(640, {}, id="added"),
        pytest.param(580, {}, id="fewer"),
        pytest.param(640, {"modules_to_save": VOCABULARY}, id="added-saved"),
        pytest.param(640, {"modules_to_save": ["embed_tokens"]}, id="added-one-saved"),
        pytest.param(
            640,
            {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
            id="added-saved-tied",
        ),
        pytest.param(None, {"trainable_token_indices": [5, 500, 9]}, id="tokens"),
        pytest.param(
            640, {"trainable_token_indices": {"embed_tokens": [5, 633]}}, id="added-tokens"
        ),
    ],
)
def test_adapters_of_the_vocabulary_equal_what_peft_merges(
    make_model: Callable[..., Path],
    tmp_path: Path,
    tied: bool,
    rows: int | None,
    settings: dict[str, Any],
) -> None:
    base = make_model(tmp_path / "base", vocab_size=600, tie_word_embeddings=tied)
    merged = save_adapter(base, tmp_path / "adapter", rows=rows, **settings)
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    assert_equal_to(checkpoint, merged)
    embedding, head = (merged[f"{name}.weight"] for name in ("model.embed_tokens", "lm_head"))
    assert checkpoint.tied == (tied and torch.equal(embedding, head))
    assert checkpoint.config["vocab_size"] == (rows or 600) == len(embedding)
    whole = materialise(checkpoint, tmp_path / "whole")
    loaded = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    torch.testing.assert_close(loaded["lm_head.weight"], head, rtol=0, atol=2e-7)


def test_added_rows_and_a_delta_of_the_embedding_come_together(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_model(tmp_path / "base", vocab_size=600)
    targets = {"target_modules": ["q_proj", *VOCABULARY]}
    merged = save_adapter(base, tmp_path / "adapter", rows=640, **targets)
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    assert checkpoint.tensors["lm_head.weight"].shape == (640, 32)
    assert_equal_to(checkpoint, merged)


def test_an_added_embedding_with_a_delta_leaves_the_tied_head_without_it(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_model(tmp_path / "base", vocab_size=600, tie_word_embeddings=True)
    targets = {"target_modules": ["q_proj", "embed_tokens"]}
    merged = save_adapter(base, tmp_path / "adapter", rows=640, **targets)
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(checkpoint.read(name), merged[name], rtol=0, atol=2e-7)
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    expected = saved["base_model.model.model.embed_tokens.base_layer.weight"]
    assert torch.equal(checkpoint.read("lm_head.weight"), expected)
    assert not checkpoint.tied


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_with_added_tokens_is_merged_with_a_model_that_lacks_them(
    make_model: Callable[..., Path], tmp_path: Path, tied: bool
) -> None:
    base = make_model(tmp_path / "base", vocab_size=260, tie_word_embeddings=tied)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<tool>", "</tool>"])
    merged = save_adapter(base, tmp_path / "adapter", rows=262)
    tokenizer.save_pretrained(tmp_path / "adapter")
    models = [str(base), f"{base}+{tmp_path / 'adapter'}"]
    out = merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    with Checkpoint.open(base) as one:
        before = one.read("model.embed_tokens.weight")
    adapted = merged["model.embed_tokens.weight"]
    expected = torch.cat([(before + adapted[:260]) / 2, adapted[260:]])
    torch.testing.assert_close(model.model.embed_tokens.weight.data, expected)
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("</tool>") == 261


def test_added_rows_of_the_embedding_alone_are_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "a", rows=640, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(UnsupportedCheckpoint, match=r"640, 32\].*save_embedding_layers=True"):
        open_checkpoint(f"{base}+{tmp_path / 'a'}")


@pytest.mark.parametrize("indices", [[5, 9, 9], [5], "all", [5, -1, 2], {}])
def test_trained_tokens_that_nobody_can_place_are_refused(
    base: Path, tmp_path: Path, indices: Any
) -> None:
    save_adapter(base, tmp_path / "a", trainable_token_indices=[5, 9, 10])
    file = tmp_path / "a/adapter_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "trainable_token_indices": indices})
    )
    with pytest.raises(CheckpointError, match="trainable_token_indices"):
        open_checkpoint(f"{base}+{tmp_path / 'a'}")


def test_trained_tokens_beyond_the_last_row_are_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "a", trainable_token_indices=[5, 9])
    file = tmp_path / "a/adapter_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "trainable_token_indices": [5, 600]})
    )
    with pytest.raises(UnsupportedCheckpoint, match="rows up to 600"):
        open_checkpoint(f"{base}+{tmp_path / 'a'}")


def test_gpt2_with_its_transposed_layers_equals_what_peft_merges(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    gpt2 = make_model(tmp_path / "gpt2", model_type="gpt2", n_embd=32, n_layer=2, n_head=4)
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    merged = save_adapter(gpt2, tmp_path / "adapter", **settings)
    assert_equal_to(open_checkpoint(f"{gpt2}+{tmp_path / 'adapter'}"), merged)


def test_biases_of_an_adapter_are_added(make_model: Callable[..., Path], tmp_path: Path) -> None:
    qwen = make_model(tmp_path / "qwen", model_type="qwen2")
    merged = save_adapter(qwen, tmp_path / "adapter", lora_bias=True)
    assert_equal_to(open_checkpoint(f"{qwen}+{tmp_path / 'adapter'}"), merged)


def test_a_bfloat16_base_is_rounded_once(make_model: Callable[..., Path], tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", dtype=torch.bfloat16)
    save_adapter(base, tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj"
    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"].float() for x in "AB")
    weight = load_file(base / "model.safetensors")[f"{name}.weight"].float()
    found = open_checkpoint(f"{base}+{tmp_path / 'adapter'}").read(f"{name}.weight")
    assert torch.equal(found, (weight + 3 * (b @ a)).bfloat16())


def test_rows_do_not_depend_on_how_they_are_asked_for(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        whole = checkpoint.read(name)
        step = 7
        pieces = [checkpoint.read(name, slice(i, i + step)) for i in range(0, len(whole), step)]
        assert torch.equal(torch.cat(pieces), whole)


def test_adapters_can_follow_each_other(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "one")
    save_adapter(base, tmp_path / "two", target_modules=["k_proj"])
    both = open_checkpoint(f"{base}+{tmp_path / 'one'}+{tmp_path / 'two'}")
    assert both.name == "base+one+two"
    for module, folder in (("q_proj", "one"), ("k_proj", "two")):
        name = f"model.layers.0.self_attn.{module}.weight"
        alone = open_checkpoint(f"{base}+{tmp_path / folder}")
        assert torch.equal(both.read(name), alone.read(name))
        assert not torch.equal(both.read(name), Checkpoint.open(base).read(name))


def test_a_saved_head_on_a_tied_base_unties_it(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_model(tmp_path / "base", tie_word_embeddings=True)
    save_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    plain = Checkpoint.open(base)
    assert plain.tied
    assert not checkpoint.tied
    embedding = checkpoint.read("model.embed_tokens.weight")
    assert torch.equal(embedding, plain.read("model.embed_tokens.weight"))
    assert not torch.equal(checkpoint.read("lm_head.weight"), embedding)
    written = materialise(checkpoint, tmp_path / "written")
    live = AutoModelForCausalLM.from_pretrained(written)
    assert torch.equal(live.lm_head.weight, checkpoint.read("lm_head.weight"))


def test_an_adapted_embedding_leaves_a_tied_head_as_it_was(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_model(tmp_path / "base", tie_word_embeddings=True)
    save_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    old = Checkpoint.open(base).read("model.embed_tokens.weight")
    assert torch.equal(checkpoint.read("lm_head.weight"), old)
    assert not torch.equal(checkpoint.read("model.embed_tokens.weight"), old)


def test_a_materialised_adapter_is_what_peft_merges(base: Path, tmp_path: Path) -> None:
    merged = save_adapter(base, tmp_path / "adapter")
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    folder = materialise(checkpoint, tmp_path / "written")
    assert_equal_to(Checkpoint.open(folder), merged)
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_an_adapter_in_a_bin_file_is_read(base: Path, tmp_path: Path) -> None:
    merged = save_adapter(base, tmp_path / "adapter")
    weights = tmp_path / "adapter/adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    assert_equal_to(open_checkpoint(f"{base}+{tmp_path / 'adapter'}"), merged)


def test_the_fingerprint_changes_with_the_adapter(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "one")
    save_adapter(base, tmp_path / "two", lora_alpha=3)
    prints = {open_checkpoint(f"{base}+{tmp_path / x}").fingerprint() for x in ("one", "two")}
    assert len(prints | {Checkpoint.open(base).fingerprint()}) == 3


def test_bytes_that_a_pass_reads_do_not_disturb_the_fingerprint(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter")
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    digesting = checkpoint.digesting()
    digesting.update("model.norm.weight", b"\0" * 128, start=0)
    assert digesting.finish() == checkpoint.fingerprint()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"init_lora_weights": "pissa"}, "changed base"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "Name the modules"),
        ({"alpha_pattern": {"[": 2}}, "no regular expression"),
        ({"lora_alpha": "much"}, "no usable number"),
        ({"use_dora": True}, "magnitudes"),
        ({"target_parameters": ["experts"]}, "fused experts"),
    ],
)
def test_a_setting_that_is_not_understood_is_refused(
    base: Path, tmp_path: Path, setting: dict[str, Any], words: str
) -> None:
    save_adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    assert str(tmp_path / "adapter") in str(caught.value)


def test_an_adapter_of_another_model_is_refused(
    base: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    save_adapter(base, tmp_path / "adapter")
    wider = make_model(tmp_path / "wider", hidden_size=64)
    with pytest.raises(UnsupportedCheckpoint, match="belongs to another model"):
        open_checkpoint(f"{wider}+{tmp_path / 'adapter'}")
    shallow = make_model(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(UnsupportedCheckpoint, match=r"layers\.1.*does not have"):
        open_checkpoint(f"{shallow}+{tmp_path / 'adapter'}")


def test_half_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_proj does not have one"):
        open_checkpoint(f"{base}+{tmp_path / 'adapter'}")


def test_a_model_in_the_place_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "other")
    with pytest.raises(CheckpointNotFound, match="belongs an adapter"):
        open_checkpoint(f"{base}+{tmp_path / 'other'}")


def test_an_adapter_in_the_place_of_a_model_is_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter")
    with pytest.raises(CheckpointNotFound, match="is an adapter, not a model"):
        open_checkpoint(tmp_path / "adapter")


def test_an_adapter_on_whole_numbers_is_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "quantised")
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(
        tensors | {name: tensors[name].to(torch.int8)},
        tmp_path / "quantised/model.safetensors",
    )
    with pytest.raises(UnsupportedCheckpoint, match="floating point only"):
        open_checkpoint(f"{tmp_path / 'quantised'}+{tmp_path / 'adapter'}")


def test_base_and_adapter_is_a_lora_checkpoint_named_after_both(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter")
    with open_checkpoint(f"{base}+{tmp_path / 'adapter'}") as checkpoint:
        assert isinstance(checkpoint, LoraCheckpoint)
        assert checkpoint.name == "base+adapter"
