"""What llama.cpp's converter and vLLM want of each format, as they have published it.

Read in November 2026: llama.cpp `conversion/{base,llama,qwen,granite}.py` and `src/models/*.cpp`;
vLLM `model_executor/models/{mixtral,qwen2_moe,qwen3_moe,granitemoe,olmoe,flex_olmo}.py`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from stock_samples import BY_NAME
from torch.nn import functional

from modelglue.checkpoint.reader import Checkpoint
from modelglue.mixture.stock import write_stock

_ATTENTION = r"self_attn\.[qkvo]_proj\.weight"
_NORMS = r"(input|post_attention)_layernorm\.weight"
_HEAD_NORMS = r"self_attn\.[qk]_norm\.weight"
_BIASES = r"self_attn\.[qkv]_proj\.bias"
_DENSE = r"mlp\.(gate|up|down)_proj\.weight"


@dataclass(frozen=True)
class Rules:
    """What readers of an architecture know.

    Attributes:
        cases: written as this architecture.
        keys: read from the configuration beside those of the dense model.
        layer: patterns of the names of a layer's tensors; every name must fit one.
        experts: tensors of each expert; 0 where all experts are in one.
        head: whether it must be stored even where it is the embedding (llama.cpp).
        llama_cpp: whether llama.cpp has it at all.
    """

    cases: tuple[str, ...]
    keys: tuple[str, ...]
    layer: tuple[str, ...]
    experts: int = 3
    head: bool = False
    llama_cpp: bool = True


RULES = {
    # llama.cpp: `block_sparse_moe.experts.{e}.{w1,w2,w3}`, num_local_experts * 3 of them in each
    # layer; weights renormalised. vLLM: the same names, w1 the gate, w2 down, w3 up.
    "MixtralForCausalLM": Rules(
        ("llama", "llama-tied", "llama-wide-heads", "mistral-window", "phi3"),
        ("num_local_experts", "num_experts_per_tok"),
        (
            _ATTENTION,
            _NORMS,
            r"block_sparse_moe\.gate\.weight",
            r"block_sparse_moe\.experts\.\d+\.w[123]\.weight",
        ),
    ),
    # llama.cpp: every layer has experts and a shared one, `output.weight` is compulsory. vLLM:
    # queries, keys and values have biases whatever qkv_bias says; layers of `mlp_only_layers` are
    # plain.
    "Qwen2MoeForCausalLM": Rules(
        ("qwen2", "qwen2-tied", "llama-hybrid", "mistral-hybrid", "qwen2-hybrid"),
        (
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "norm_topk_prob",
            "decoder_sparse_step",
            "mlp_only_layers",
        ),
        (
            _ATTENTION,
            _BIASES,
            _NORMS,
            _DENSE,
            r"mlp\.gate\.weight",
            r"mlp\.experts\.\d+\.(gate|up|down)_proj\.weight",
            r"mlp\.shared_expert\.(gate|up|down)_proj\.weight",
            r"mlp\.shared_expert_gate\.weight",
        ),
        head=True,
    ),
    # Both: as above without shared experts and biases. llama.cpp: weights renormalised, a missing
    # output is the embedding.
    "Qwen3MoeForCausalLM": Rules(
        ("qwen3", "qwen3-hybrid"),
        (
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "norm_topk_prob",
            "decoder_sparse_step",
            "mlp_only_layers",
            "head_dim",
        ),
        (
            _ATTENTION,
            _HEAD_NORMS,
            _NORMS,
            _DENSE,
            r"mlp\.gate\.weight",
            r"mlp\.experts\.\d+\.(gate|up|down)_proj\.weight",
        ),
    ),
    # Both: gate and up of all experts in `input_linear` [experts, 2 * intermediate_size, hidden].
    "GraniteMoeForCausalLM": Rules(
        ("granite",),
        ("num_local_experts", "num_experts_per_tok", "intermediate_size", "residual_multiplier"),
        (
            _ATTENTION,
            _NORMS,
            r"block_sparse_moe\.router\.layer\.weight",
            r"block_sparse_moe\.(in|out)put_linear\.weight",
        ),
        experts=0,
    ),
    "FlexOlmoForCausalLM": Rules(
        ("olmo2",),
        ("num_experts", "num_experts_per_tok"),
        (
            _ATTENTION,
            _HEAD_NORMS,
            r"post_(attention|feedforward)_layernorm\.weight",
            r"mlp\.gate\.weight",
            r"mlp\.experts\.\d+\.(gate|up|down)_proj\.weight",
        ),
        llama_cpp=False,
    ),
}


@pytest.mark.parametrize("architecture", RULES)
def test_names_and_settings_are_those_that_llama_cpp_and_vllm_read(
    architecture: str, tmp_path: Path
) -> None:
    rules = RULES[architecture]
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for name in rules.cases:
        case = BY_NAME[name]
        dense = case.save(tmp_path / name)
        out = tmp_path / f"{name}-out"
        write_stock(out, dict.fromkeys("ab", dense), dense, None, kind=case.kind(top_k=1))
        config = json.loads((out / "config.json").read_text())
        assert config["architectures"] == [architecture]
        assert config.keys() >= {*rules.keys, "hidden_size", "num_hidden_layers", "vocab_size"}
        assert config.get("norm_topk_prob", True) is True
        assert "auto_map" not in config
        assert not list(out.glob("*.py"))
        experts: dict[str, int] = {}
        for tensor in (names := Checkpoint.open(out).tensors):
            if tensor in outside:
                continue
            found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", tensor)
            assert found is not None, tensor
            assert any(re.fullmatch(rule, found[2]) for rule in rules.layer), tensor
            if ".experts." in tensor:
                experts[found[1]] = experts.get(found[1], 0) + 1
        mixed = range(case.shared_layers, 3) if rules.experts else ()
        assert experts == {str(layer): 2 * rules.experts for layer in mixed}
        if rules.head:
            assert "lm_head.weight" in names


def test_a_shared_expert_says_nothing_in_any_readers_arithmetic(tmp_path: Path) -> None:
    case = BY_NAME["qwen2"]
    dense = case.save(tmp_path / "dense")
    write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, None, kind=case.kind())
    out = Checkpoint.open(tmp_path / "out")
    states = torch.randn(50, 32)
    prefix = "model.layers.0.mlp.shared_expert"
    gate, up, down = (out.read(f"{prefix}.{m}_proj.weight") for m in ("gate", "up", "down"))
    said = functional.linear(functional.silu(states @ gate.T) * (states @ up.T), down)
    opened = states @ out.read(f"{prefix}_gate.weight").T
    for sigmoid in (opened.sigmoid(), functional.silu(opened) / opened):  # llama.cpp's way
        assert bool((sigmoid * said == 0).all())


def test_biases_that_the_dense_model_lacks_are_zeros(tmp_path: Path) -> None:
    case = BY_NAME["llama-hybrid"]
    dense = case.save(tmp_path / "dense")
    write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, None, kind=case.kind())
    out = Checkpoint.open(tmp_path / "out")
    sizes = {"q": 32, "k": 16, "v": 16}
    for layer in range(3):
        for letter, size in sizes.items():
            bias = out.read(f"model.layers.{layer}.self_attn.{letter}_proj.bias")
            assert torch.equal(bias, torch.zeros(size))


def test_readers_that_differ_are_told_in_the_card(tmp_path: Path) -> None:
    for name, words in {
        "qwen2": "llama.cpp does not renormalise",
        "olmo2": "llama.cpp does not read FlexOlmo",
        "qwen3-hybrid": "llama.cpp reads no mixture with dense layers",
    }.items():
        case = BY_NAME[name]
        dense = case.save(tmp_path / name)
        out = tmp_path / f"{name}-out"
        write_stock(out, dict.fromkeys("ab", dense), dense, None, kind=case.kind())
        assert words in (out / "README.md").read_text()
