"""Experts run one by one say what transformers' own loop says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GptOssConfig,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from modelglue.evaluate.experts import BY_EXPERT, by_expert, use_by_expert
from modelglue.evaluate.huggingface import HuggingFaceModel

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 24}
FAMILIES = {
    "mixtral": (MixtralConfig, {"num_local_experts": 4}),
    "qwen2_moe": (Qwen2MoeConfig, {**EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": (Qwen3MoeConfig, {**EXPERTS, "head_dim": 8}),
}


def sparse(family: str, *, chosen: int = 1, **more: Any) -> Any:
    kind, own = FAMILIES[family]
    torch.manual_seed(0)
    config = kind(**SHAPE, **own, num_experts_per_tok=chosen, **more)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("chosen", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_own_loop(family: str, chosen: int) -> None:
    model = sparse(family, chosen=chosen)
    tokens = torch.randint(60, (5, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for rows in (tokens, tokens[:1, :1]):
            model.set_experts_implementation("eager")
            wanted = model(rows).logits
            use_by_expert(model)
            assert model.config._experts_implementation == "eager", "somebody's choice stands"
            model.set_experts_implementation("grouped_mm")
            use_by_expert(model)
            assert model.config._experts_implementation == BY_EXPERT
            assert torch.allclose(model(rows).logits, wanted, rtol=1e-5, atol=1e-5)
    assert wanted.std() > 0.1


def test_a_place_without_an_expert_adds_nothing() -> None:
    experts = sparse("mixtral").model.layers[0].mlp.experts
    rows = torch.randn(3, 32)
    weights = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    with torch.no_grad():
        half = by_expert(experts, rows, torch.tensor([[0, 4], [4, 1], [4, 4]]), weights)
        first = by_expert(experts, rows[:1], torch.tensor([[0]]), torch.tensor([[0.5]]))
        nobody = by_expert(experts, rows, torch.full((3, 1), 4), weights[:, :1])
    assert torch.allclose(half[:1], first, atol=1e-6)
    assert half[1].abs().sum() > 0
    assert not half[2].any()
    assert not nobody.any()


def test_gradients_pass() -> None:
    model = sparse("mixtral", chosen=2)
    tokens = torch.arange(12).view(2, 6)
    found = []
    for loop in ("eager", BY_EXPERT):
        model.set_experts_implementation(loop)
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for wanted, got in zip(*found, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_experts_with_biases_are_left_to_transformers() -> None:
    config = GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=1, head_dim=8)
    model = AutoModelForCausalLM.from_config(config)
    before = model.config._experts_implementation
    use_by_expert(model)
    assert model.config._experts_implementation == before


def test_a_loaded_model_runs_so_and_is_saved_as_it_was(tmp_path: Path, make_model: Any) -> None:
    donor = make_model(tmp_path / "donor")
    sparse("mixtral").save_pretrained(tmp_path / "stock")
    AutoTokenizer.from_pretrained(donor).save_pretrained(tmp_path / "stock")
    loaded = HuggingFaceModel.load(tmp_path / "stock")
    assert loaded.module.config._experts_implementation == BY_EXPERT
    loaded.module.save_pretrained(tmp_path / "again")
    assert BY_EXPERT not in (tmp_path / "again" / "config.json").read_text()
