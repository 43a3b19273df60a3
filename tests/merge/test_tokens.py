"""Which tokens the output has, and which rows, in the cases that few models bring."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_models
from safetensors.numpy import load_file
from token_oracle import (
    EMBEDDING,
    Side,
    arithmetic,
    average,
    check,
    linear,
    runs,
    sides,
    task_arithmetic,
)
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelglue import merge
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.tokenizer import Tokens, tokens_of, vocabulary
from modelglue.errors import NotMergeable
from modelglue.merge.config.schema import parse_config
from modelglue.merge.config.tokenizer import TokenizerConfig
from modelglue.merge.plan.merge_plan import make_plan
from modelglue.merge.vocabulary.parties import Party
from modelglue.merge.vocabulary.special_ids import followed, roles_of, taken_over
from modelglue.merge.vocabulary.tokens import OutputTokens, rows_of
from modelglue.merge.vocabulary.vocabulary import unite


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    found = {
        "base": token_models.save(folder / "base", seed=0),
        "wide": token_models.save(folder / "wide", seed=1, rows=320),
        "chat": token_models.save(folder / "chat", seed=2, added=["<|im_end|>", "[PAD]"]),
        "tool": token_models.save(folder / "tool", seed=3, added=["<tool>"], rows=320),
        "the": token_models.save(
            folder / "the", seed=4, added=[AddedToken("Ġthe", single_word=True), "<x>"]
        ),
        "rowless": folder / "rowless",
    }
    shutil.copytree(found["base"], found["rowless"])
    tokenizer = AutoTokenizer.from_pretrained(found["rowless"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(found["rowless"])
    return found


def test_rows_of_no_token_stay_where_a_model_has_them(zoo: dict[str, Path], tmp_path: Path) -> None:
    out = merge(arithmetic(zoo, "chat", "tool", base="wide"), tmp_path / "out")
    merged = check(out, sides(zoo, "wide", "chat", "tool"), "wide", task_arithmetic(0.5))
    wide, tool = (Side(zoo[name]).tensors[EMBEDDING] for name in ("wide", "tool"))
    assert len(merged.tensors[EMBEDDING]) == 320
    # chat has 282 rows: beyond, it is lent the base's and adds nothing.
    expected = wide[283:] + 0.5 * (tool[283:] - wide[283:])
    np.testing.assert_allclose(merged.tensors[EMBEDDING][283:], expected, atol=1e-6)
    runs(out)


def test_a_row_is_nobodys_only_if_it_is_no_token_there(zoo: dict[str, Path]) -> None:
    theirs = Party("m", "m", Tokens({"a": 0, "z": 2}, {}, 2), stored=4)
    tokens = OutputTokens({"a": 0, "b": 1}, zoo["base"])
    assert rows_of(theirs, tokens, 5, 5).tolist() == [0, -1, -1, 3, -1]
    assert rows_of(theirs, tokens, 5, 3).tolist() == [0, -1, -1, -1, -1]


def test_a_models_token_without_a_row_is_not_taken_over(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    config = arithmetic(zoo, "rowless", "tool", tokenizer_source="union")
    merged = Side(merge(config, tmp_path / "out"))
    assert merged.vocab.keys() == Side(zoo["base"]).vocab.keys() | {"<tool>"}


def test_a_token_without_a_row_comes_back_where_a_model_has_one(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    out = merge(arithmetic(zoo, "chat", base="rowless"), tmp_path / "out")
    merged = check(out, sides(zoo, "rowless", "chat"), "rowless", task_arithmetic(0.5))
    assert set(vocabulary(out)) == set(vocabulary(zoo["chat"]))
    np.testing.assert_array_equal(
        merged.row(EMBEDDING, "[PAD]"), Side(zoo["chat"]).row(EMBEDDING, "[PAD]")
    )
    assert AutoTokenizer.from_pretrained(out).pad_token == "[PAD]"
    runs(out)


@pytest.mark.parametrize("base", [None, "rowless"])
def test_trained_rows_are_not_cut_where_the_template_is_shorter(
    zoo: dict[str, Path], tmp_path: Path, base: str | None
) -> None:
    paths = {**zoo, "grown": tmp_path / "grown"}
    tokenizer = AutoTokenizer.from_pretrained(zoo["rowless"])
    token_models.save(paths["grown"], seed=9, tokenizer=tokenizer, rows=288)
    config = linear(paths, "rowless", "grown")
    if base:
        config = arithmetic(paths, "grown", base=base)
    out = merge(config, tmp_path / "out")
    combine = task_arithmetic(0.5) if base else average
    merged = check(out, sides(paths, "rowless", "grown"), base, combine)
    assert merged.vocab == vocabulary(paths["grown"])
    np.testing.assert_array_equal(
        merged.row(EMBEDDING, "[PAD]"), Side(paths["grown"]).row(EMBEDDING, "[PAD]")
    )
    runs(out)


def test_rows_come_back_to_a_table_whose_tokens_cannot_be_edited(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    paths = {"short": tmp_path / "short", "grown": tmp_path / "grown"}
    token_models.save(paths["grown"], seed=9, added=["<x>", "<y>"])
    shutil.copytree(zoo["base"], paths["short"])
    (paths["grown"] / "tokenizer.json").rename(tmp_path / "whole.json")
    for path in paths.values():
        content = json.loads((tmp_path / "whole.json").read_text())
        (path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
        (path / "added_tokens.json").write_text('{"<x>": 280, "<y>": 281}')
        (path / "tokenizer.json").unlink(missing_ok=True)
    out = merge(linear(paths, "short", "grown"), tmp_path / "out")
    assert vocabulary(out) == vocabulary(paths["grown"])
    written, grown = (
        load_file(path / "model.safetensors")[EMBEDDING] for path in (out, paths["grown"])
    )
    np.testing.assert_array_equal(written[280:], grown[280:])


@pytest.mark.parametrize("names", [("chat", "odd"), ("odd", "chat"), ("base", "odd", "chat")])
def test_added_tokens_are_united_unasked_in_any_order(
    zoo: dict[str, Path], tmp_path: Path, names: tuple[str, ...]
) -> None:
    paths = {**zoo, "odd": tmp_path / "odd"}
    token_models.save(paths["odd"], seed=7, added=["[PAD]"])  # number 281 in chat, 280 here
    out = merge(linear(paths, *names), tmp_path / "out")
    merged = check(out, sides(paths, *names), None, average)
    assert merged.vocab.keys() == Side(zoo["chat"]).vocab.keys()
    runs(out)


def test_an_ordinary_token_that_another_model_added_becomes_one(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    out = merge(arithmetic(zoo, "the", tokenizer_source="union"), tmp_path / "out")
    entry = tokens_of(out).added["Ġthe"]
    assert entry["id"] == vocabulary(zoo["base"])["Ġthe"]
    assert entry["single_word"] is True
    assert Side(out).vocab == vocabulary(out)


def test_the_base_may_be_one_of_the_models(zoo: dict[str, Path]) -> None:
    base, other = (Checkpoint.open(zoo[name]) for name in ("base", "chat"))
    vocabulary = unite(TokenizerConfig("union"), [base, other], base)
    union = vocabulary.union([1], [282], 280, 282)
    assert union is not None
    assert union.base is not None
    np.testing.assert_array_equal(union.base, [*range(280), -1, -1])
    among = vocabulary.union([0, 1], [280, 282], None, 282)
    assert among is not None
    assert (among.base, among.loans.models[1].tolist()) == (None, [280, 281])


def test_a_model_without_a_tokenizer_is_taken_to_have_the_others(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(zoo["base"], bare)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    paths = {**zoo, "bare": bare}
    out = merge(arithmetic(paths, "bare", "chat"), tmp_path / "out")
    check(
        out,
        sides({**zoo, "bare": zoo["base"]}, "base", "bare", "chat"),
        "base",
        task_arithmetic(0.5),
    )
    runs(out)


def test_pieces_without_numbers_are_compared_and_not_united(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    paths = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for name, path in paths.items():
        shutil.copytree(zoo["base"], path)
        (path / "tokenizer.json").unlink()
        piece = b"\x0a\x01" + name.encode()
        (path / "spiece.model").write_bytes(b"\x0a\x03" + piece)
    with pytest.raises(NotMergeable, match=r"spiece\.model: it does not say which numbers"):
        make_plan(parse_config(linear(paths, "a", "b")))
    shutil.copy(paths["a"] / "spiece.model", paths["b"])
    assert make_plan(parse_config(linear(paths, "a", "b"))).notes == ()


def test_ids_follow_their_tokens() -> None:
    config = {
        "eos_token_id": [1, 2, 9],
        "bos_token_id": 0,
        "pad_token_id": 3,
        "unk_token_id": 4,
        "image_token_index": 2,
        "hidden_size": 2,
        "text_config": {"eos_token_id": 1, "suppress_tokens": [1, 4]},
    }
    ids = {0: None, 1: 11, 2: 12, 3: None, 4: None}
    assert followed(config, ids, {"bos": 20}) == {
        "eos_token_id": [11, 12, 9],
        "bos_token_id": 20,
        "image_token_index": 12,
        "hidden_size": 2,
        "text_config": {"eos_token_id": 11, "suppress_tokens": [11]},
    }


def test_tokens_that_the_output_loses_are_told(zoo: dict[str, Path]) -> None:
    def report(**more: Any) -> tuple[Any, str]:
        found = make_plan(parse_config(arithmetic(zoo, "chat", "tool", **more))).tokenizer
        assert found is not None
        return found.report, "\n".join(found.notes)

    said, notes = report(tokenizer={"source": "base"}, chat_template="chatml")
    assert said["lost"] == [
        {"model": "chat", "tokens": 2, "examples": ["<|im_end|>", "[PAD]"]},
        {"model": "tool", "tokens": 1, "examples": ["<tool>"]},
    ]
    assert said["template_lacks"] == ["<|im_end|>"]
    assert "The output lacks 1 token (`'<tool>'`) of tool." in notes
    assert "The chat template names tokens that the output lacks: `'<|im_end|>'`." in notes
    said, notes = report(tokenizer={"source": "base"}, chat_template="alpaca")
    assert said["template_lacks"] == []
    said, notes = report(chat_template="chatml")
    assert (said["lost"], said["template_lacks"]) == ([], [])
    assert "lacks" not in notes.replace("Rows that a model lacks", "")


@pytest.mark.parametrize("template_generates", [True, False])
@pytest.mark.parametrize("told_by", ["files", "roles"])
def test_a_merge_with_another_models_tokenizer_stops_where_that_stops(
    zoo: dict[str, Path], tmp_path: Path, told_by: str, template_generates: bool
) -> None:
    paths = {"base": tmp_path / "base", "chat": tmp_path / "chat"}
    for name, path in paths.items():
        shutil.copytree(zoo[name], path)
    tokenizer = AutoTokenizer.from_pretrained(zoo["chat"])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(paths["chat"])
    if told_by == "files":
        for name, change in {
            "config.json": {"eos_token_id": 280},
            "generation_config.json": {"eos_token_id": [280, 2], "temperature": 0.5},
        }.items():
            content = json.loads((paths["chat"] / name).read_text())
            (paths["chat"] / name).write_text(json.dumps(content | change))
    else:
        bare = tmp_path / "bare"
        bare.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(paths["chat"] / name, bare)
    if not template_generates:
        (paths["base"] / "generation_config.json").unlink()
    source = str(paths["chat"] if told_by == "files" else tmp_path / "bare")
    out = merge(linear(paths, "base", "chat", tokenizer_source=source), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|im_end|>"
    settings = json.loads((out / "config.json").read_text())
    assert settings["eos_token_id"] == 280
    model = AutoModelForCausalLM.from_pretrained(out)
    stops = model.generation_config.eos_token_id
    assert stops == ([280, 2] if told_by == "files" else 280)
    assert model.generation_config.temperature != 0.5


def test_beginning_and_end_are_set_where_a_configuration_keeps_them() -> None:
    ends = {"eos_token_id": 7, "pad_token_id": 8}
    assert taken_over({"eos_token_id": 2, "text_config": {"eos_token_id": 2}}, ends) == {
        "eos_token_id": 7,
        "text_config": {"eos_token_id": 7, "pad_token_id": 8},
    }


def test_roles_are_what_the_tokenizer_names(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<gone>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert roles_of(tmp_path, {"<s>": 5, "</s>": 6}) == {"bos": 5, "eos": 6}
