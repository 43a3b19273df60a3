"""Which tensors have a row a token: neither dense layers nor classifiers that are called alike."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_models
import torch
from safetensors.numpy import load_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

import tiny
from modelglue import merge
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import ShapeMismatch
from modelglue.merge.vocabulary.vocabulary import vocabulary_tensors


def save(kind: Any, path: Path, model_type: str, added: tuple[str, ...] = (), **more: Any) -> Path:
    tokenizer: PreTrainedTokenizerFast = token_models.bpe()
    tokenizer.add_tokens(list(added))
    sizes = {**tiny.SIZES, "num_hidden_layers": 1, "vocab_size": len(tokenizer), **more}
    torch.manual_seed(len(path.name))
    kind.from_config(AutoConfig.for_model(model_type, **sizes)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("model_type", "dense", "bias"),
    [
        ("bert", "cls.predictions.transform.dense.weight", "cls.predictions.bias"),
        ("roberta", "lm_head.dense.weight", "lm_head.bias"),
    ],
)
def test_a_dense_layer_before_the_head_has_no_row_a_token(
    tmp_path: Path, model_type: str, dense: str, bias: str
) -> None:
    a = save(AutoModelForMaskedLM, tmp_path / "a", model_type)
    b = save(AutoModelForMaskedLM, tmp_path / "bb", model_type, ("<x>", "<y>"))
    known = vocabulary_tensors(Checkpoint.open(a))
    assert dense not in known
    assert bias in known
    assert Checkpoint.open(a).tied
    config = {"merge_method": "linear", "models": [str(a), str(b)]}
    out = merge(config, tmp_path / "out")
    before, after = load_file(a / "model.safetensors"), load_file(out / "model.safetensors")
    other = load_file(b / "model.safetensors")
    assert after.keys() == before.keys()
    np.testing.assert_allclose(after[dense], (before[dense] + other[dense]) / 2, atol=1e-6)
    assert after[bias].shape == (282,)
    tied = [json.loads((p / "config.json").read_text()) for p in (a, out)]
    assert tied[0].get("tie_word_embeddings") == tied[1].get("tie_word_embeddings")
    model, told = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert model.get_input_embeddings().num_embeddings == 282


def test_classifiers_with_other_labels_are_refused(tmp_path: Path) -> None:
    kind = AutoModelForSequenceClassification
    paths = [save(kind, tmp_path / ("c" * n), "llama", num_labels=n) for n in (2, 3)]
    config = {"merge_method": "linear", "models": [str(path) for path in paths]}
    with pytest.raises(ShapeMismatch, match=r"score\.weight: ccc has \[3, 32\], cc has \[2, 32\]"):
        merge(config, tmp_path / "out")


def test_a_classifier_keeps_its_rows_where_tokens_are_united(tmp_path: Path) -> None:
    kind = AutoModelForSequenceClassification
    paths = [
        save(kind, tmp_path / "a", "llama", num_labels=2),
        save(kind, tmp_path / "bb", "llama", ("<x>",), num_labels=2),
    ]
    config = {"merge_method": "linear", "models": [str(path) for path in paths]}
    out = merge(config, tmp_path / "out")
    score = [load_file(path / "model.safetensors")["score.weight"] for path in (*paths, out)]
    np.testing.assert_allclose(score[2], (score[0] + score[1]) / 2, atol=1e-6)
