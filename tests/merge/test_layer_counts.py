"""Layers in a new order: `config.json` says of each what it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from modelglue.errors import NotMergeable
from modelglue.merge.plan.layer_counts import recounted
from modelglue.merge.plan.output_config import stack
from modelglue.merge.run import merge

QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
WINDOWS = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4}


def stacked(
    make_model: Callable[..., Path], folder: Path, layers: list[int], **config: Any
) -> Path:
    base = make_model(folder / "base", num_hidden_layers=6, **config)
    slices = [{"sources": [{"model": str(base), "layer_range": [n, n + 1]}]} for n in layers]
    return merge({"merge_method": "passthrough", "slices": slices}, folder / "out")


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({**DEEPSEEK, "first_k_dense_replace": 2}, [0, 1, 2, 3, 2, 3, 4, 5]),
        ({**DEEPSEEK, "first_k_dense_replace": 2}, [1, 3, 4]),
        ({**DEEPSEEK, "first_k_dense_replace": 2}, [3, 4, 5]),
        ({**DEEPSEEK, "first_k_dense_replace": 1}, [0, 0, 0, 4]),
        ({**QWEN3_MOE, "mlp_only_layers": [0, 4]}, [0, 1, 4, 4, 5]),
        ({**QWEN3_MOE, "mlp_only_layers": [0, 1, 2, 3, 4, 5]}, [5, 3, 1, 1]),
        ({**QWEN3_MOE, "decoder_sparse_step": 2}, [0, 1, 2, 3, 0, 1]),
        ({**QWEN3_MOE, "decoder_sparse_step": 2}, [1, 1, 2, 2, 5]),
        ({**QWEN3_MOE, "decoder_sparse_step": 2, "mlp_only_layers": [1]}, [1, 3, 3, 0]),
        ({**WINDOWS, "max_window_layers": 3}, [0, 1, 2, 3, 2, 3, 4, 5]),
        ({**WINDOWS, "max_window_layers": 3}, [2, 4, 4, 5]),
    ],
)
def test_every_layer_is_what_it_was(
    make_model: Callable[..., Path], tmp_path: Path, config: dict[str, Any], layers: list[int]
) -> None:
    out = stacked(make_model, tmp_path, layers, **config)
    model, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    kinds = [type(before.model.layers[n].mlp) for n in layers]
    assert [type(layer.mlp) for layer in model.model.layers] == kinds
    types = getattr(AutoConfig.from_pretrained(tmp_path / "base"), "layer_types", None)
    if types is not None:
        found = AutoConfig.from_pretrained(out).layer_types
        assert found == [types[n] for n in layers]


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"model_type": "gemma2", "head_dim": 8}, [0, 2, 3, 3]),
        ({"model_type": "gemma2", "head_dim": 8}, [0, 1, 4, 5, 2]),
        ({"model_type": "gemma3_text", "head_dim": 8, "_sliding_window_pattern": 3}, [2, 1, 2]),
    ],
)
def test_windows_that_an_old_configuration_leaves_unsaid_stay_with_their_layers(
    make_model: Callable[..., Path], tmp_path: Path, config: dict[str, Any], layers: list[int]
) -> None:
    period = config.pop("_sliding_window_pattern", None)
    base = make_model(tmp_path / "base", num_hidden_layers=6, **config)
    file = base / "config.json"
    old = json.loads(file.read_text())
    for key in ("layer_types", "sliding_window_pattern", "_sliding_window_pattern"):
        old.pop(key, None)
    file.write_text(json.dumps({**old, **({"sliding_window_pattern": period} if period else {})}))
    types = AutoConfig.from_pretrained(base).layer_types
    assert len({*types}) == 2
    slices = [{"sources": [{"model": str(base), "layer_range": [n, n + 1]}]} for n in layers]
    out = merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.layer_types == [types[n] for n in layers]


@pytest.mark.parametrize("layers", [[0, 1, 2, 0, 1, 2], [2, 1]])
def test_dense_layers_after_others_cannot_be_said_and_are_refused(
    make_model: Callable[..., Path], tmp_path: Path, layers: list[int]
) -> None:
    with pytest.raises(NotMergeable, match="first_k_dense_replace is 2"):
        stacked(make_model, tmp_path, layers, **DEEPSEEK, first_k_dense_replace=2)
    assert not (tmp_path / "out").exists()


def test_a_period_is_kept_where_the_layers_keep_step() -> None:
    config = {"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 2}
    keep = [(config, n) for n in (0, 1, 2, 3, 0, 1, 2, 3, 4, 5)]
    assert recounted(config, keep, "num_hidden_layers") == {}
    with pytest.raises(NotMergeable, match="attn_layer_period is 4"):
        recounted(config, keep[1:], "num_hidden_layers")


def test_layers_at_the_end_are_counted_from_the_end() -> None:
    config = {"num_hidden_layers": 6, "num_kv_shared_layers": 2}
    for layers, count in ([0, 1, 5], 1), ([0, 4, 5, 4, 5], 4), ([0, 1], 0):
        found = recounted(config, [(config, n) for n in layers], "num_hidden_layers")
        assert found == {"num_kv_shared_layers": count}
    with pytest.raises(NotMergeable, match="num_kv_shared_layers"):
        recounted(config, [(config, n) for n in (5, 0)], "num_hidden_layers")


def test_models_of_different_depth_are_each_asked_for_themselves() -> None:
    one = {"num_hidden_layers": 4, "first_k_dense_replace": 1}
    other = {"num_hidden_layers": 8, "first_k_dense_replace": 3}
    layers = [(one, 0), (other, 1), (other, 2), (one, 1)]
    assert recounted(one, layers, "num_hidden_layers") == {"first_k_dense_replace": 3}


def test_a_list_of_kinds_says_it_in_the_place_of_a_number() -> None:
    config = {
        "num_hidden_layers": 4,
        "sliding_window_pattern": 2,
        "layer_types": ["a", "b", "a", "b"],
    }
    stack(config, [(dict(config), n) for n in (1, 1, 2)])
    assert config["layer_types"] == ["b", "b", "a"]


def test_layers_that_predict_further_tokens_are_gone_with_them() -> None:
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    found = recounted(config, [(config, n) for n in (0, 1, 2)], "num_hidden_layers")
    assert found == {"num_nextn_predict_layers": 0}
