"""Slices of real checkpoints: what transformers makes of the output."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from modelglue.merge.config.schema import parse_config
from modelglue.merge.run import merge

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"head_dim": 8},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
    "gpt_neox": {},
    "gpt2": {"n_layer": 4, "n_embd": 32, "n_head": 4},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_layers_load_and_compute_as_the_layers_that_they_were(
    tmp_path: Path, family: str
) -> None:
    models = {
        name: tiny.save_model(tmp_path / name, seed=seed, model_type=family, **FAMILIES[family])
        for seed, name in enumerate("ab")
    }
    pieces = [("a", 0, 3), ("b", 1, 4), ("a", 3, 4)]
    slices = [
        {"sources": [{"model": str(models[name]), "layer_range": [first, last]}]}
        for name, first, last in pieces
    ]
    config = parse_config({"merge_method": "passthrough", "slices": slices})
    out = merge(config, tmp_path / "out")
    stored = {name: load_file(path / "model.safetensors") for name, path in models.items()}
    written = load_file(out / "model.safetensors")
    origins = [(name, number) for name, first, last in pieces for number in range(first, last)]
    for tensor, value in written.items():
        if (found := re.match(r"(.*?\.)(\d+)(\..*)", tensor)) is not None:
            name, number = origins[int(found[2])]
            assert torch.equal(value, stored[name][f"{found[1]}{number}{found[3]}"])
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.num_hidden_layers == 7
    assert loaded(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


@pytest.mark.parametrize("order", [("tied", "untied"), ("untied", "tied")])
def test_a_head_that_one_model_has_is_in_the_loaded_merge(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    for seed, name in enumerate(order):
        tiny.save_model(tmp_path / name, seed=seed, tie_word_embeddings=name == "tied")
    models = [str(tmp_path / name) for name in order]
    out = merge(parse_config({"merge_method": "linear", "models": models}), tmp_path / "out")
    tied, untied = (load_file(tmp_path / n / "model.safetensors") for n in ("tied", "untied"))
    expected = (tied["model.embed_tokens.weight"] + untied["lm_head.weight"]) / 2
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.allclose(loaded.lm_head.weight, expected, atol=1e-6)
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


@pytest.mark.parametrize("last", ["tied", "untied"])
@pytest.mark.parametrize("base", [None, "tied", "untied"])
def test_a_stack_of_tied_and_untied_models_has_the_head_of_its_last_slice(
    tmp_path: Path, last: str, base: str | None
) -> None:
    order = ["untied", "tied"] if last == "tied" else ["tied", "untied"]
    for seed, name in enumerate(order):
        tiny.save_model(tmp_path / name, seed=seed, tie_word_embeddings=name == "tied")
    slices = [
        {"sources": [{"model": str(tmp_path / name), "layer_range": [2 * i, 2 * i + 2]}]}
        for i, name in enumerate(order)
    ]
    config: dict[str, Any] = {"merge_method": "passthrough", "slices": slices}
    if base is not None:
        config["base_model"] = str(tmp_path / base)
    out = merge(config, tmp_path / "out")
    stored = load_file(tmp_path / last / "model.safetensors")
    head = stored["model.embed_tokens.weight" if last == "tied" else "lm_head.weight"]
    loaded, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert torch.equal(loaded.lm_head.weight, head)
