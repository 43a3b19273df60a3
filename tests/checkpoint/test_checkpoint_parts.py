"""The small parts: coverage, naming, vocabularies, cards."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelglue.checkpoint.card import installed_versions, model_card
from modelglue.checkpoint.coverage import Coverage
from modelglue.checkpoint.naming import head_and_embedding, place
from modelglue.checkpoint.spec import TensorSpec
from modelglue.checkpoint.tokenizer import same_vocabulary, vocabulary
from modelglue.errors import CheckpointNotFound, CorruptCheckpoint


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted))
        )
    )
)
def test_coverage_agrees_with_a_set_of_bytes(case: tuple[int, list[list[int]]]) -> None:
    length, ranges = case
    coverage, seen = Coverage({"t": length}), set()
    for start, end in ranges:
        coverage.add("t", start, end)
        seen |= set(range(start, end))
        missing = [byte for byte in range(length) if byte not in seen]
        if not missing:
            assert coverage.missing() == ""
        else:
            first = missing[0]
            last = next((b for b in range(first, length) if b in seen), length)
            assert coverage.missing() == f"t was not written from byte {first} to {last}"


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("model.layers.12.self_attn.q_proj.weight", 12, "attention"),
        ("model.layers.0.self_attn.k_norm.weight", 0, "norm"),
        ("model.layers.3.mlp.gate_proj.weight", 3, "mlp"),
        ("model.layers.3.post_attention_layernorm.weight", 3, "norm"),
        ("model.layers.3.block_sparse_moe.experts.7.w2.weight", 3, "mlp"),
        ("model.layers.3.block_sparse_moe.gate.weight", 3, "mlp"),
        ("model.layers.5.mlp.experts.63.down_proj.weight", 5, "mlp"),
        ("model.layers.5.self_attn.kv_a_proj_with_mqa.weight", 5, "attention"),
        ("model.embed_tokens.weight", None, "embedding"),
        ("lm_head.weight", None, "head"),
        ("model.norm.weight", None, "norm"),
        ("transformer.wte.weight", None, "embedding"),
        ("wpe.weight", None, "embedding"),
        ("transformer.h.11.attn.c_attn.bias", 11, "attention"),
        ("h.11.attn.c_proj.weight", 11, "attention"),
        ("h.11.attn.bias", 11, "other"),
        ("h.11.mlp.c_proj.weight", 11, "mlp"),
        ("h.11.ln_2.weight", 11, "norm"),
        ("transformer.ln_f.bias", None, "norm"),
        ("gpt_neox.layers.4.attention.query_key_value.weight", 4, "attention"),
        ("gpt_neox.layers.4.mlp.dense_h_to_4h.bias", 4, "mlp"),
        ("embed_out.weight", None, "head"),
        ("transformer.word_embeddings_layernorm.weight", None, "norm"),
        ("model.decoder.layers.0.fc1.weight", 0, "mlp"),
        ("model.decoder.layers.0.self_attn_layer_norm.bias", 0, "norm"),
        ("model.decoder.embed_positions.weight", None, "embedding"),
        ("transformer.blocks.0.attn.Wqkv.weight", 0, "attention"),
        ("layers.2.attention.wo.weight", 2, "attention"),
        ("layers.2.feed_forward.w3.weight", 2, "mlp"),
        ("tok_embeddings.weight", None, "embedding"),
        ("output.weight", None, "head"),
        ("bert.encoder.layer.1.attention.output.dense.weight", 1, "attention"),
        ("bert.encoder.layer.1.output.dense.weight", 1, "mlp"),
        ("bert.encoder.layer.1.output.LayerNorm.weight", 1, "norm"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", 0, "other"),
        ("backbone.layers.0.mixer.A_log", 0, "other"),
    ],
)
def test_a_tensors_place_is_told_by_its_name(name: str, layer: int | None, role: str) -> None:
    assert (place(name).layer, place(name).role) == (layer, role)


def specs(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    """Tensors by name, `__` in place of a dot."""
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {n: TensorSpec(n, "F32", shape, Path("x"), 0, 0) for n, shape in names.items()}


def test_head_and_token_embedding_are_found() -> None:
    tensors = specs(
        h__0__attn__c_attn__weight=(8, 24),
        wpe__weight=(60, 8),
        wte__weight=(64, 8),
        lm_head__bias=(64,),
        lm_head__weight=(64, 8),
    )
    assert head_and_embedding(tensors) == ("lm_head.weight", "wte.weight")
    first = {name: tensors[name] for name in list(tensors)[:2]}
    assert head_and_embedding(first) == (None, None)


def test_a_dense_layer_before_the_head_is_not_the_head() -> None:
    tensors = specs(
        roberta__embeddings__word_embeddings__weight=(64, 8),
        lm_head__dense__weight=(8, 8),
        lm_head__bias=(64,),
    )
    assert head_and_embedding(tensors)[0] is None
    tensors |= specs(lm_head__decoder__weight=(64, 8))
    assert head_and_embedding(tensors)[0] == "lm_head.decoder.weight"


def test_a_classifier_is_no_head_and_a_padded_head_is_one() -> None:
    embedding = specs(model__embed_tokens__weight=(64, 8))
    assert head_and_embedding(embedding | specs(score__weight=(3, 8)))[0] is None
    codes = specs(model__codes__embedding__weight=(512, 4)) | embedding
    assert head_and_embedding(codes | specs(lm_head__weight=(64, 8))) == (
        "lm_head.weight",
        "model.embed_tokens.weight",
    )
    padded = embedding | specs(lm_head__weight=(56, 8))
    assert head_and_embedding(padded)[0] == "lm_head.weight"


def write_tokenizer(folder: Path, vocab: Any, added: Any = ()) -> Path:
    folder.mkdir()
    content = {"model": {"vocab": vocab}, "added_tokens": list(added)}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_a_vocabulary_is_what_transformers_has(llamas: list[Path]) -> None:
    from transformers import AutoTokenizer

    assert vocabulary(llamas[0]) == AutoTokenizer.from_pretrained(llamas[0]).get_vocab()


def test_added_tokens_and_scored_lists_are_read(tmp_path: Path) -> None:
    added = [{"content": "<end>", "id": 2}]
    folder = write_tokenizer(tmp_path / "m", [["a", -1.0], ["b", -2.0]], added)
    assert vocabulary(folder) == {"a": 0, "b": 1, "<end>": 2}


def test_older_vocabulary_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("x\ny\n")
    assert vocabulary(tmp_path) == {"x": 0, "y": 1}
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "added_tokens.json").write_text('{"b": 1}')
    assert vocabulary(tmp_path) == {"a": 0, "b": 1}


def test_a_folder_without_a_vocabulary_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"no tokenizer\.json"):
        vocabulary(tmp_path)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"model": {"vocab": 3}}', '{"model": {"vocab": [1]}}']
)
def test_a_broken_vocabulary_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match=r"tokenizer\.json"):
        vocabulary(tmp_path)


def test_vocabularies_are_compared_in_words(tmp_path: Path) -> None:
    a = write_tokenizer(tmp_path / "a", {"x": 0, "y": 1})
    same = write_tokenizer(tmp_path / "same", [["x", 0.0], ["y", 0.0]])
    swapped = write_tokenizer(tmp_path / "swapped", {"x": 1, "y": 0})
    longer = write_tokenizer(tmp_path / "longer", {"x": 0, "y": 1, "z": 2})
    (tmp_path / "none").mkdir()
    assert same_vocabulary(a, same) is None
    assert same_vocabulary(a, swapped) == "token 'x' is number 0 in one and 1 in the other"
    assert "2 tokens against 3; 1 are in one alone, such as 'z'" in str(same_vocabulary(a, longer))
    assert same_vocabulary(a, tmp_path / "none") is None


INPUTS = [("math", "models/math", "ab12"), ("chat", "org/chat@0a1b2c", "cd34")]


def test_a_card_begins_with_front_matter_that_the_hub_reads() -> None:
    card = model_card("glued", method="linear", inputs=INPUTS)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == ["math", "org/chat"]
    assert set(front["tags"]) == {"merge", "modelglue"}
    assert front["library_name"] == "transformers"


def test_a_card_has_the_whole_provenance() -> None:
    config = {"merge_method": "linear", "models": [{"model": "models/math", "weight": 0.5}]}
    card = model_card(
        "glued", method="linear", inputs=INPUTS, config=config, parameters={"weight": [0.5, 0.5]}
    )
    assert "| math | models/math | ab12 |" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) == {"weight": [0.5, 0.5]}
    assert yaml.safe_load(card.split("```yaml\n")[2].split("```")[0]) == config
    for package, version in installed_versions().items():
        assert f"| {package.replace('_', chr(92) + '_')} | {version} |" in card


def test_names_cannot_break_out_of_a_card() -> None:
    card = model_card(
        "x\n# y", method="linear", inputs=[("a|b\n<script>", "w", "f")], config={"k": "```\nend"}
    )
    assert "\n# y" not in card
    assert "<script>" not in card.split("---\n", 2)[2]
    assert "````yaml" in card
