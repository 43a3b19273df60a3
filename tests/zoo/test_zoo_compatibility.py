"""Why two models cannot be merged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import CorruptCheckpoint
from modelglue.zoo.compatibility import incompatibility


def reason(a: Path, b: Path) -> str | None:
    return incompatibility(Checkpoint.open(a), Checkpoint.open(b))


def reconfigure(source: Path, target: Path, **settings: Any) -> Path:
    """A copy of a model with its configuration changed; None takes a key away."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | settings
    config = {key: value for key, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_fine_tunes_of_one_base_can_be_merged(llamas: list[Path]) -> None:
    assert reason(llamas[0], llamas[1]) is None
    assert reason(llamas[2], llamas[1]) is None


def test_architectures_differ(llamas: list[Path], tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other", model_type="qwen2")
    assert reason(llamas[0], other) == "architecture: llama vs qwen2"


def test_the_class_counts_where_the_model_type_is_the_same(
    llamas: list[Path], tmp_path: Path
) -> None:
    other = reconfigure(llamas[0], tmp_path / "o", architectures=["LlamaForTokenClassification"])
    assert reason(llamas[0], other) == (
        "architecture: LlamaForCausalLM vs LlamaForTokenClassification"
    )


def test_a_configuration_without_a_class_is_no_reason(llamas: list[Path], tmp_path: Path) -> None:
    assert reason(llamas[0], reconfigure(llamas[1], tmp_path / "o", architectures=None)) is None


def test_the_number_of_layers_differs(llamas: list[Path], tmp_path: Path) -> None:
    deep = tiny.save_model(tmp_path / "deep", num_hidden_layers=6)
    assert reason(llamas[0], deep) == "shape: 4 layers vs 6"


def test_the_first_tensor_of_another_shape_is_named_with_both(
    llamas: list[Path], tmp_path: Path
) -> None:
    wide = tiny.save_model(tmp_path / "wide", intermediate_size=96)
    assert reason(llamas[0], wide) == (
        "shape: model.layers.0.mlp.down_proj.weight is [32, 64] in base, [32, 96] in wide"
    )


def test_a_tensor_that_one_model_lacks_is_named(llamas: list[Path], tmp_path: Path) -> None:
    biased = tiny.save_model(tmp_path / "biased", attention_bias=True)
    assert reason(llamas[0], biased) == (
        "shape: base has no model.layers.0.self_attn.k_proj.bias ([16] in biased)"
    )


def test_a_tied_head_and_one_of_its_own_differ(llamas: list[Path], tmp_path: Path) -> None:
    tied = tiny.save_model(tmp_path / "tied", tie_word_embeddings=True)
    expected = "shape: the head of tied is tied to its embedding, that of base is its own"
    assert reason(llamas[0], tied) == reason(tied, llamas[0]) == expected


def test_a_token_at_another_row_is_named(llamas: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(llamas[1], tmp_path / "other")
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    data = json.loads(text)
    vocabulary = data["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (other / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    found = reason(llamas[0], other)
    assert found is not None
    assert found.startswith("vocabulary: ")
    assert "'A'" in found


def test_embeddings_of_other_lengths_under_one_tokenizer_are_named(
    llamas: list[Path], tmp_path: Path
) -> None:
    padded = tiny.save_model(tmp_path / "padded", vocab_size=320)
    found = reason(llamas[0], padded)
    assert found is not None
    assert "lm_head.weight is [264, 32] in base, [320, 32] in padded" in found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_attention_heads": 8}, "attention heads: 4 in base, 8 in other"),
        ({"num_key_value_heads": 1}, "key-value heads: 2 in base, 1 in other"),
        ({"head_dim": 16}, "head width: 8 in base, 16 in other"),
        ({"hidden_act": "gelu"}, "activation: silu in base, gelu in other"),
        (
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
            "rope theta: 10000 in base, 1e+06 in other",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
            "rope scaling: type default in base, type linear, factor 2 in other",
        ),
        (
            {"rope_parameters": None, "rope_theta": 1e6},
            "rope theta: 10000 in base, 1e+06 in other",
        ),
    ],
)
def test_settings_that_change_what_weights_mean_are_named(
    llamas: list[Path], tmp_path: Path, settings: dict[str, Any], expected: str
) -> None:
    other = reconfigure(llamas[1], tmp_path / "other", **settings)
    assert reason(llamas[0], other) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_parameters": None, "rope_theta": 10000.0},
        {"rope_parameters": None, "rope_scaling": None},
        {"rope_parameters": None, "rope_scaling": {"type": "default"}},
        {"head_dim": None},
        {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
    ],
)
def test_the_same_settings_in_older_words_are_no_reason(
    llamas: list[Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert reason(llamas[0], reconfigure(llamas[1], tmp_path / "other", **settings)) is None


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"rope_parameters": "default"}, "rope_parameters must be an object, and is 'default'"),
        ({"rope_parameters": None, "rope_scaling": [2]}, "rope_scaling must be an object"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta must be a number, and is 'big'"),
        ({"rope_parameters": None, "rope_theta": [1e4]}, "rope_theta must be a number"),
    ],
)
def test_rotary_settings_that_mean_nothing_are_refused(
    llamas: list[Path], tmp_path: Path, settings: dict[str, Any], key: str
) -> None:
    other = reconfigure(llamas[1], tmp_path / "other", **settings)
    with pytest.raises(CorruptCheckpoint, match=rf"other/config\.json: {key}"):
        reason(llamas[0], other)


def test_models_can_be_called_by_other_names(llamas: list[Path], tmp_path: Path) -> None:
    wide = tiny.save_model(tmp_path / "wide", intermediate_size=96)
    a, b = Checkpoint.open(llamas[0]), Checkpoint.open(wide)
    found = incompatibility(a, b, names=("x", "y"))
    assert found is not None
    assert found.endswith("is [32, 64] in x, [32, 96] in y")
