"""Layers in a new order: `config.json` says of each what it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hollow
import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from modelglue.errors import NotMergeable
from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.depths import counted_by
from modelglue.merge.plan.layer_counts import recounted
from modelglue.merge.plan.merge_plan import make_plan
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
    stack(config, [(dict(config), n) for n in (1, 1, 2)], ["num_hidden_layers"])
    assert config["layer_types"] == ["b", "b", "a"]


def test_layers_that_predict_further_tokens_are_gone_with_them() -> None:
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    found = recounted(config, [(config, n) for n in (0, 1, 2)], "num_hidden_layers")
    assert found == {"num_nextn_predict_layers": 0}


# Several stacks, and kinds that nobody lists


def slices_of(model: Path, runs: list[list[int]]) -> dict[str, Any]:
    return {"slices": [{"sources": [{"model": str(model), "layer_range": run}]} for run in runs]}


ENCODER_DECODERS = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4},
    "bart": {
        "d_model": 32,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    },
}


def encoder_decoder(path: Path, family: str, encoder: int, decoder: int) -> Path:
    keys = {
        "t5": ("num_layers", "num_decoder_layers"),
        "bart": ("encoder_layers", "decoder_layers"),
    }
    depths = dict(zip(keys[family], (encoder, decoder), strict=True))
    config = AutoConfig.for_model(
        family, **ENCODER_DECODERS[family], **depths, vocab_size=64, decoder_start_token_id=0
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("decoder", [3, 4])
@pytest.mark.parametrize(
    ("runs", "others"), [([[0, 3], [1, 4]], [[0, 3]]), ([[0, 2]], [[0, 3], [1, 3]])]
)
def test_the_stacks_of_an_encoder_and_a_decoder_are_counted_each_by_its_key(
    tmp_path: Path, family: str, decoder: int, runs: list[list[int]], others: list[list[int]]
) -> None:
    model = encoder_decoder(tmp_path / "model", family, 4, decoder)
    modules = {
        "encoder": slices_of(model, runs),
        "decoder": slices_of(model, others),
        "rest": {"models": [str(model)]},
    }
    out = merge({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")
    loaded, told = AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    stacks = [loaded.get_encoder(), loaded.get_decoder()]
    depths = [len(stack.block if family == "t5" else stack.layers) for stack in stacks]
    assert depths == [sum(b - a for a, b in run) for run in (runs, others)]


def test_a_key_that_may_count_either_stack_is_refused(tmp_path: Path) -> None:
    model = encoder_decoder(tmp_path / "model", "t5", 4, 4)
    file = model / "config.json"
    config = json.loads(file.read_text())
    del config["num_decoder_layers"]
    file.write_text(json.dumps(config))
    modules = {"encoder": slices_of(model, [[0, 3]]), "rest": {"models": [str(model)]}}
    with pytest.raises(NotMergeable, match=r"num_layers of config[.]json counts the layers of dec"):
        merge({"merge_method": "passthrough", "modules": modules}, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "stack", "keys"),
    [
        ({"num_hidden_layers": 4}, "model.layers.", {(): ["num_hidden_layers"]}),
        ({"num_hidden_layers": 9}, "model.layers.", {}),
        (
            {"num_hidden_layers": 2, "text_config": {"num_hidden_layers": 4}},
            "model.layers.",
            {("text_config",): ["num_hidden_layers"]},
        ),
        (
            {"vision_config": {"num_hidden_layers": 4}, "text_config": {"num_hidden_layers": 4}},
            "model.layers.",
            {("text_config",): ["num_hidden_layers"]},
        ),
        (
            {"vision_config": {"num_hidden_layers": 4}, "text_config": {"num_hidden_layers": 4}},
            "vision_tower.encoder.layers.",
            {("vision_config",): ["num_hidden_layers"]},
        ),
        (
            {"encoder": {"num_hidden_layers": 4}, "decoder": {"num_hidden_layers": 4}},
            "decoder.bert.encoder.layer.",
            {("decoder",): ["num_hidden_layers"]},
        ),
    ],
)
def test_the_keys_of_a_stack_are_told_from_names_and_depths(
    config: dict[str, Any], stack: str, keys: dict[tuple[str, ...], list[str]]
) -> None:
    vision = 4 if "vision_config" in config else 2
    other = "encoder.bert.encoder.layer." if "encoder" in config else "model.layers."
    depths = {other: 4, "vision_tower.encoder.layers.": vision, stack: 4}
    assert counted_by(config, stack, depths) == keys


def hybrid(path: Path, pattern: str, **config: Any) -> Path:
    """Layers of two kinds."""
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (8, 4)}
    for layer, kind in enumerate(pattern):
        rest = "mixer.conv" if kind == "M" else "attn.q_proj"
        tensors |= {f"model.layers.{layer}.{name}.weight": (4, 4) for name in (rest, "mlp")}
    return hollow.save(path, tensors, num_hidden_layers=len(pattern), **config)


@pytest.mark.parametrize(
    ("pattern", "runs", "fits"),
    [
        ("MAMA", [[0, 4]], True),
        ("MAMA", [[0, 2]], True),
        ("MAMA", [[0, 2], [0, 2]], True),
        ("MAMA", [[1, 4]], False),
        ("MAMA", [[0, 3], [2, 4]], False),
        ("MAMA", [[0, 4], [2, 4]], False),
        ("AMMM", [[0, 4], [1, 4]], True),
        ("AMMM", [[0, 2], [0, 2]], False),
        ("AMMM", [[1, 4]], False),
        ("MMMM", [[1, 4], [0, 3]], True),
    ],
)
def test_layers_whose_kind_no_key_tells_keep_a_place_of_their_kind(
    tmp_path: Path, pattern: str, runs: list[list[int]], fits: bool
) -> None:
    model = hybrid(tmp_path / "model", pattern, hybrid_override_pattern=pattern)
    config = parse_config({"merge_method": "passthrough", **slices_of(model, runs)})
    if fits:
        make_plan(config)
        return
    with pytest.raises(NotMergeable, match=r"is of another kind than config[.]json can tell"):
        make_plan(config)


def test_layers_whose_kind_a_list_tells_may_stand_anywhere(tmp_path: Path) -> None:
    model = hybrid(tmp_path / "model", "MAMA", layers_block_type=["m", "a", "m", "a"])
    plan = make_plan(
        parse_config({"merge_method": "passthrough", **slices_of(model, [[1, 4], [1, 2]])})
    )
    assert plan.output_config["layers_block_type"] == ["a", "m", "a", "a"]


def test_layers_of_another_offset_are_not_taken_for_those_of_the_period(tmp_path: Path) -> None:
    one = hybrid(tmp_path / "one", "MAMA", attn_layer_period=2, attn_layer_offset=1)
    two = hybrid(tmp_path / "two", "AMAM", attn_layer_period=2, attn_layer_offset=0)
    slices = slices_of(one, [[0, 2]])["slices"] + slices_of(two, [[2, 4]])["slices"]
    with pytest.raises(NotMergeable, match="layer 2 of the output"):
        make_plan(parse_config({"merge_method": "passthrough", "slices": slices}))
