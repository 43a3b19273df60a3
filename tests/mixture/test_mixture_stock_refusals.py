"""What has no stock form, and models that make no mixture: refused before a byte is written."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock_samples import BY_NAME

import tiny
from modelglue.errors import MixtureError, OutputExists
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.stock import StockTarget, stock_target, write_stock

LLAMA, QWEN2, GRANITE = (BY_NAME[name] for name in ("llama", "qwen2", "granite"))
TOP1, HYBRID = MixtureKind("ffn", "linear", "token"), MixtureKind("ffn", "linear", "token", 1, 1)


def edit(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        ({"model_type": "gemma2"}, TOP1, "no stock mixture-of-experts class computes what gemma2"),
        ({"model_type": "llama"}, MixtureKind("ffn", "mlp", "token"), "F-M-T is another kind"),
        ({"model_type": "llama"}, MixtureKind("ffn", "linear"), "F-L-S is another kind"),
        ({"model_type": "llama"}, MixtureKind("block"), "B-L-S is another kind"),
        ({"model_type": "llama", "attention_bias": True}, TOP1, "attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, TOP1, "mlp_bias True"),
        ({"model_type": "llama", "hidden_act": "gelu"}, TOP1, "hidden_act 'gelu'"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, TOP1, "quantization_config"),
        ({"model_type": "llama", "auto_map": {"AutoModel": "x.y"}}, TOP1, "auto_map"),
        ({"model_type": "llama", "head_dim": 8}, HYBRID, "head_dim 8"),
        ({"model_type": "llama", "num_hidden_layers": 1}, HYBRID, "leaves none to mix"),
        ({"model_type": "mistral"}, HYBRID, "a sliding window"),
        ({"model_type": "qwen2", "use_sliding_window": True}, TOP1, "a sliding window"),
        ({"model_type": "qwen3", "use_sliding_window": True}, TOP1, "a sliding window"),
        ({"model_type": "granite"}, HYBRID, "shared_layers: 0 has a stock form"),
        ({"model_type": "olmo2"}, HYBRID, "shared_layers: 0 has a stock form"),
        (
            {"model_type": "phi3", "rope_parameters": {"partial_rotary_factor": 0.5}},
            TOP1,
            "Phi-3's own rotary positions",
        ),
    ],
)
def test_what_a_stock_class_does_not_compute_has_no_stock_form(
    config: dict[str, Any], kind: MixtureKind, words: str
) -> None:
    reason = stock_target({"max_window_layers": 0, **config}, kind)
    assert isinstance(reason, str)
    assert words in reason
    assert reason.endswith("A checkpoint that carries its own modelling file can hold it.")


def test_all_reasons_are_given_at_once() -> None:
    config = {"model_type": "llama", "mlp_bias": True, "hidden_act": "relu"}
    reason = stock_target(config, MixtureKind("ffn", "mlp", "token"))
    assert isinstance(reason, str)
    assert all(words in reason for words in ("mlp_bias", "relu", "F-M-T"))


def test_settings_that_do_nothing_are_no_reason() -> None:
    config = {
        "model_type": "qwen2",
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 2,
        "head_dim": 128,
        "hidden_size": 4096,
        "num_attention_heads": 32,
    }
    target = stock_target(config, TOP1)
    assert isinstance(target, StockTarget)
    assert "head_dim" not in target.output_config(["a", "b"])


def test_a_configuration_that_transformers_cannot_read_is_refused() -> None:
    with pytest.raises(MixtureError, match="cannot read the configuration"):
        stock_target({"model_type": "llama", "rms_norm_eps": "small"}, TOP1)


def test_a_setting_of_the_dense_class_that_nobody_has_heard_of_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import LlamaConfig

    monkeypatch.setitem(LlamaConfig.__annotations__, "twist", float)
    monkeypatch.setattr(LlamaConfig, "twist", 0.0, raising=False)
    assert isinstance(stock_target({"model_type": "llama", "twist": 0.0}, TOP1), StockTarget)
    reason = stock_target({"model_type": "llama", "twist": 1.0}, TOP1)
    assert "twist: not known to mixtral" in str(reason)


def test_everything_that_does_not_fit_is_told_at_once_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    dense = LLAMA.save(models / "dense")
    experts = {
        "narrow": LLAMA.save(models / "narrow", intermediate_size=48),
        "thin": LLAMA.save(models / "thin", hidden_size=16),
        "short": LLAMA.save(models / "short", num_hidden_layers=2),
        "foreign": QWEN2.save(models / "foreign"),
        "biased": LLAMA.save(models / "biased", mlp_bias=True),
        "gelu": edit(LLAMA.save(models / "gelu"), hidden_act="gelu"),
        "small": edit(LLAMA.save(models / "small"), quantization_config={"bits": 4}),
        "whole": integers(LLAMA.save(models / "whole")),
        "good": dense,
    }
    with pytest.raises(MixtureError) as caught:
        write_stock(tmp_path / "out", experts, dense, None, kind=TOP1)
    said = str(caught.value)
    for words in (
        "'narrow': intermediate_size is 48, and the dense model's 64",
        "'thin': hidden_size is 16, and the dense model's 32",
        "'short': num_hidden_layers is 2, and the dense model's 3",
        "'foreign': it is a qwen2 model, and the dense one a llama model",
        "'biased': mlp_bias",
        "'gelu': hidden_act is gelu",
        "'small': its weights are quantised",
        "'whole': its weights are I8",
    ):
        assert words in said
    assert "'good'" not in said
    assert os.listdir(tmp_path) == ["models"]


def test_other_tokens_are_refused_with_what_takes_them(tmp_path: Path) -> None:
    dense, other = LLAMA.save(tmp_path / "dense"), LLAMA.save(tmp_path / "other", vocab_size=300)
    known = tiny.tokenizer()
    known.add_tokens(["hello"])
    known.save_pretrained(other)
    with pytest.raises(MixtureError) as caught:
        write_stock(tmp_path / "out", {"a": dense, "b": other}, dense, None, kind=TOP1)
    assert "expert 'b': its tokens are not the dense model's" in str(caught.value)
    assert "such as 'hello'); use M-L-S with shared_layers: 0, a bundle" in str(caught.value)
    assert "expert 'a'" not in str(caught.value)


def integers(folder: Path) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors = {n: t.to(torch.int8) if ".mlp." in n else t for n, t in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_routers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    dense = LLAMA.save(tmp_path / "models/dense")
    good = LinearRouter(torch.ones(2, 32), torch.zeros(2))
    bad = [
        LinearRouter(torch.ones(3, 32), torch.zeros(3)),
        LinearRouter(torch.full((2, 32), torch.nan), torch.zeros(2)),
        LinearRouter(torch.ones(2, 32), torch.tensor([0.0, 0.1])),
        good,
    ]
    with pytest.raises(MixtureError) as caught:
        write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, bad, kind=TOP1)
    for words in (
        "4 routers for 3 layers",
        "layer 0 is [3, 32], and must be [2, 32]",
        "layer 1 holds NaN",
        "layer 2 has a bias",
    ):
        assert words in str(caught.value)
    assert os.listdir(tmp_path) == ["models"]


def test_a_bias_that_is_the_same_for_all_experts_says_nothing_and_is_left_out(
    tmp_path: Path,
) -> None:
    dense = LLAMA.save(tmp_path / "dense")
    router = LinearRouter(torch.ones(2, 32), torch.full((2,), 7.0))
    write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, [router] * 3, kind=TOP1)


def test_the_number_of_experts_must_make_sense(tmp_path: Path) -> None:
    dense = LLAMA.save(tmp_path / "models/dense")
    with pytest.raises(MixtureError, match="two experts or more, and there are 1"):
        write_stock(tmp_path / "out", {"a": dense}, dense, None, kind=TOP1)
    three = MixtureKind("ffn", "linear", "token", 3)
    with pytest.raises(MixtureError, match="top_k: 3 of 2 experts"):
        write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, None, kind=three)


def test_a_dense_model_whose_tensors_are_not_its_familys_is_refused(tmp_path: Path) -> None:
    dense = LLAMA.save(tmp_path / "models/dense")
    path = dense / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    tensors["model.layers.1.mlp.up_proj.bias"] = torch.zeros(64)
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # of an old version
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(MixtureError) as caught:
        write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, None, kind=TOP1)
    said = str(caught.value)
    assert "lacks model.norm.weight" in said
    assert "has model.layers.1.mlp.up_proj.bias, which llama models have not" in said
    assert "no lm_head.weight, and its configuration does not tie it" in said
    assert "inv_freq" not in said


def test_no_stock_form_is_an_error_that_says_what_can_hold_it(tmp_path: Path) -> None:
    dense = GRANITE.save(tmp_path / "models/dense")
    with pytest.raises(MixtureError, match=r"no stock form.*modelling file can hold it"):
        write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, None, kind=HYBRID)
    assert os.listdir(tmp_path) == ["models"]


def test_an_output_that_is_there_is_not_touched(tmp_path: Path) -> None:
    dense = LLAMA.save(tmp_path / "dense")
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, None, kind=TOP1)


def test_what_the_dense_models_dtype_cannot_hold_is_refused_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    dense = LLAMA.save(tmp_path / "models/dense", dtype=torch.float16)
    huge = LLAMA.save(tmp_path / "models/huge")
    path = huge / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(MixtureError, match=r"layers\.1\.mlp\.up_proj\.weight.*no finite F16"):
        write_stock(tmp_path / "out", {"a": dense, "b": huge}, dense, None, kind=TOP1)
    assert os.listdir(tmp_path) == ["models"]


def test_a_router_that_the_dense_models_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    dense = LLAMA.save(tmp_path / "models/dense", dtype=torch.float16)
    steep = [LinearRouter(torch.full((2, 32), 1e5), torch.zeros(2))] * 3
    with pytest.raises(MixtureError, match=r"layers\.0\..*gate\.weight.*beyond F16.*BF16 or F32"):
        write_stock(tmp_path / "out", dict.fromkeys("ab", dense), dense, steep, kind=TOP1)
    assert os.listdir(tmp_path) == ["models"]
