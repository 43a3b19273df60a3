"""Models with other tokens, merged, loaded by transformers and compared token by token."""

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
    HEAD,
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
from transformers import AutoTokenizer

from modelglue import merge
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import ConfigError, NotMergeable
from modelglue.merge.config.schema import parse_config
from modelglue.merge.config.tokenizer import TokenizerConfig, TokenSource
from modelglue.merge.plan.merge_plan import make_plan
from modelglue.merge.vocabulary.vocabulary import unite, vocabulary_tensors


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    chat, tool = ["<|im_start|>", "<|im_end|>"], ["<tool>", "<|im_end|>"]
    return {
        "base": token_models.save(folder / "base", seed=0),
        "chat": token_models.save(folder / "chat", seed=1, added=chat),
        "tool": token_models.save(folder / "tool", seed=2, added=tool, rows=320),
        "odd": token_models.save(
            folder / "odd", seed=3, added=["<|im_end|>", AddedToken("<y>", lstrip=True)]
        ),
        "padded": token_models.save(folder / "padded", seed=4, rows=320),
        "latin": token_models.save(
            folder / "latin", seed=5, tokenizer=token_models.bpe(token_models.LATIN, 290)
        ),
    }


@pytest.mark.parametrize("section", [{}, {"tokenizer_source": "union"}])
def test_added_tokens_are_united(
    zoo: dict[str, Path], tmp_path: Path, section: dict[str, Any]
) -> None:
    out = merge(arithmetic(zoo, "chat", "tool", **section), tmp_path / "out")
    merged = check(out, sides(zoo, "base", "chat", "tool"), "base", task_arithmetic(0.5))
    tokens = runs(out)
    assert [t for t in tokens if t.startswith("<")] == ["<|im_start|>", "<tool>", "<|im_end|>"]
    before = Side(zoo["base"]).vocab
    assert {token: merged.vocab[token] for token in before} == before
    new = {token: i for token, i in merged.vocab.items() if token not in before}
    assert new == {"<|im_start|>": 280, "<|im_end|>": 281, "<tool>": 282}


def test_a_token_of_one_model_comes_out_as_it_is(zoo: dict[str, Path], tmp_path: Path) -> None:
    merged = Side(merge(arithmetic(zoo, "chat", "tool"), tmp_path / "out"))
    row = Side(zoo["tool"]).row(EMBEDDING, "<tool>")
    np.testing.assert_array_equal(merged.row(EMBEDDING, "<tool>"), row)


def test_without_a_base_the_models_that_have_a_token_lend_their_mean(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    config = linear(zoo, "base", "chat", "tool", tokenizer={"source": "union"})
    check(merge(config, tmp_path / "out"), sides(zoo, "base", "chat", "tool"), None, average)


def test_the_bases_tokens_are_kept_alone(zoo: dict[str, Path], tmp_path: Path) -> None:
    out = merge(arithmetic(zoo, "chat", "tool", tokenizer_source="base"), tmp_path / "out")
    merged = check(out, sides(zoo, "base", "chat", "tool"), "base", task_arithmetic(0.5))
    assert merged.vocab == Side(zoo["base"]).vocab
    assert (out / "tokenizer.json").read_bytes() == (zoo["base"] / "tokenizer.json").read_bytes()
    runs(out)


def test_another_models_tokenizer_moves_the_special_ids(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    donor = tmp_path / "donor"
    donor.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo["latin"] / name, donor)
    content = json.loads((donor / "tokenizer.json").read_text())
    numbers = {"<pad>": 2, "<s>": 0, "</s>": 1}
    content["model"]["vocab"] |= numbers
    for entry in content["added_tokens"]:
        entry["id"] = numbers[entry["content"]]
    (donor / "tokenizer.json").write_text(json.dumps(content))
    config = arithmetic(zoo, "chat", tokenizer={"source": str(donor)})
    out = merge(config, tmp_path / "out")
    check(out, sides(zoo, "base", "chat"), "base", task_arithmetic(0.5))
    for name in ("config.json", "generation_config.json"):
        written = json.loads((out / name).read_text())
        expected = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        assert {key: written[key] for key in expected} == expected
    runs(out)


def test_different_merge_tables_need_a_word(zoo: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(NotMergeable, match=r"different vocabularies: .*tokenizer: \{source: union"):
        merge(arithmetic(zoo, "latin"), tmp_path / "out")
    out = merge(arithmetic(zoo, "latin", tokenizer_source="union"), tmp_path / "out")
    merged = check(out, sides(zoo, "base", "latin"), "base", task_arithmetic(0.5))
    assert merged.vocab.keys() == Side(zoo["base"]).vocab.keys() | Side(zoo["latin"]).vocab.keys()
    runs(out)


def test_padding_is_the_mean_row(zoo: dict[str, Path], tmp_path: Path) -> None:
    section = {"source": "union", "pad_to_multiple_of": 64}
    out = merge(arithmetic(zoo, "chat", "tool", tokenizer=section), tmp_path / "out")
    merged = check(out, sides(zoo, "base", "chat", "tool"), "base", task_arithmetic(0.5))
    for name in (EMBEDDING, HEAD):
        rows = merged.tensors[name]
        assert len(rows) == 320
        # Task arithmetic is linear: the mean of the merged rows is the merge of the means.
        mean = rows[: len(merged.vocab)].mean(axis=0)
        np.testing.assert_allclose(rows[len(merged.vocab) :], np.tile(mean, (37, 1)), atol=1e-6)
    runs(out)


@pytest.mark.parametrize(
    ("base", "model", "rows"), [("base", "padded", 280), ("padded", "base", 320)]
)
def test_padding_alone_follows_the_template(
    zoo: dict[str, Path], tmp_path: Path, base: str, model: str, rows: int
) -> None:
    out = merge(arithmetic(zoo, model, base=base), tmp_path / "out")
    merged = check(out, sides(zoo, base, model), base, task_arithmetic(0.5))
    assert len(merged.tensors[EMBEDDING]) == len(merged.tensors[HEAD]) == rows
    beyond = Side(zoo[base]).tensors[EMBEDDING][280:]
    np.testing.assert_array_equal(merged.tensors[EMBEDDING][280:], beyond)
    runs(out)


def test_tokens_come_from_where_they_are_asked_from(zoo: dict[str, Path], tmp_path: Path) -> None:
    def token(model: str, **which: Any) -> dict[str, Any]:
        return {"source": {"kind": "model_token", "model": str(zoo[model]), **which}}

    section = {
        "source": "union",
        "tokens": {
            "<|im_end|>": {"source": str(zoo["odd"])},
            "<tool>": {"source": {"kind": "zero"}},
            "<y>": token("tool", token_id=7),
            "<new>": token("base", token="</s>"),
            "</s>": {"source": str(zoo["chat"]), "force": True},
            "<s>": {"source": {"kind": "zero"}, "force": True},
        },
    }
    names = ("base", "chat", "tool", "odd")
    out = merge(arithmetic(zoo, *names[1:], tokenizer=section), tmp_path / "out")
    known = sides(zoo, *names)
    lent = {
        "<|im_end|>": lambda name: known["odd"].row(name, "<|im_end|>"),
        "<tool>": lambda name: np.zeros(32),
        "<y>": lambda name: known["tool"].tensors[name][7],
        "<new>": lambda name: known["base"].row(name, "</s>"),
        "</s>": lambda name: known["chat"].row(name, "</s>"),
        "<s>": lambda name: np.zeros(32),
    }
    check(out, known, "base", task_arithmetic(0.5), lent, forced=("<s>", "</s>"))
    assert runs(out)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (TokenSource("chat", token="<nowhere>"), "chat has no row for '<nowhere>'"),
        (TokenSource("chta"), "'chta' is no model of the merge.*chat"),
    ],
)
def test_a_loan_that_nobody_can_give_is_refused(
    zoo: dict[str, Path], source: TokenSource, told: str
) -> None:
    models = [Checkpoint.open(zoo[name]) for name in ("base", "chat")]
    with pytest.raises(NotMergeable, match=told):
        unite(TokenizerConfig("union", {"<a>": source}), models[1:], models[0])


def test_a_row_beyond_the_lenders_is_refused(zoo: dict[str, Path]) -> None:
    lender = {"kind": "model_token", "model": str(zoo["chat"]), "token_id": 282}
    section = {"source": "union", "tokens": {"<a>": {"source": lender}}}
    with pytest.raises(NotMergeable, match="row 282 shall be lent, the model has 282"):
        make_plan(parse_config(arithmetic(zoo, "chat", tokenizer=section)))


def test_tied_heads_are_united_too(tmp_path: Path) -> None:
    a = token_models.save(tmp_path / "a", seed=0, tied=True)
    b = token_models.save(tmp_path / "b", seed=1, tied=True, added=["<x>"])
    c = token_models.save(tmp_path / "c", seed=2, added=["<y>"], rows=300)
    paths = {"a": a, "b": b, "c": c}
    out = merge(linear(paths, "a", "b"), tmp_path / "tied")
    merged = check(out, sides(paths, "a", "b"), None, average)
    assert HEAD not in merged.tensors
    runs(out)
    out = merge(linear(paths, "c", "b"), tmp_path / "mixed")
    merged = check(out, sides(paths, "c", "b"), None, average)
    assert merged.tensors[HEAD].shape == (300, 32)
    runs(out)


def test_the_heads_bias_goes_along(tmp_path: Path) -> None:
    a = token_models.save(tmp_path / "a", seed=0, model_type="phi")
    b = token_models.save(tmp_path / "b", seed=1, model_type="phi", added=["<x>"])
    for path, value in ((a, 1.0), (b, 3.0)):
        token_models.fill(path, "lm_head.bias", value)
    out = merge(linear({"a": a, "b": b}, "a", "b"), tmp_path / "out")
    bias = load_file(out / "model.safetensors")["lm_head.bias"]
    np.testing.assert_array_equal(bias, [2.0] * 280 + [3.0])
    runs(out)


def test_a_token_without_a_row_is_left_out(zoo: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(zoo["base"], broken)
    tokenizer = AutoTokenizer.from_pretrained(broken)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(broken)
    paths = {**zoo, "broken": broken}
    config = arithmetic(paths, "chat", base="broken", tokenizer_source="base")
    out = merge(config, tmp_path / "out")
    assert "[PAD]" not in AutoTokenizer.from_pretrained(out).get_vocab()
    runs(out)


def test_the_report_says_which_rows_came_from_where(zoo: dict[str, Path]) -> None:
    vocabulary = make_plan(parse_config(arithmetic(zoo, "chat", "tool"))).tokenizer
    assert vocabulary is not None
    report = vocabulary.report
    assert (report["tokens"], report["rows"], report["shared"]) == (283, 283, 280)
    assert {tuple(one["models"]): one["examples"] for one in report["partial"]} == {
        ("chat",): ["<|im_start|>"],
        ("tool",): ["<tool>"],
        ("chat", "tool"): ["<|im_end|>"],
    }
    assert report["lent"] == {"by the base": 0, "by one model": 2, "as a mean": 1, "as zeros": 0}
    assert json.loads(json.dumps(report)) == report
    assert any("In tool alone: 1 token (`'<tool>'`)." in sentence for sentence in vocabulary.notes)


def test_models_alike_need_no_union(zoo: dict[str, Path]) -> None:
    models = [Checkpoint.open(zoo["base"]) for _ in range(2)]
    vocabulary = unite(None, models, None)
    assert vocabulary.report == {}
    assert vocabulary.union([0, 1], [280, 280], None, 280) is None
    assert vocabulary.config(models[0].config) == models[0].config
    written = vocabulary.files()
    assert written["tokenizer.json"] == (zoo["base"] / "tokenizer.json").read_bytes()


def test_tensors_with_a_row_a_token_are_known(zoo: dict[str, Path]) -> None:
    assert vocabulary_tensors(Checkpoint.open(zoo["base"])) == {EMBEDDING, HEAD}


def test_a_chat_template_can_be_chosen(zoo: dict[str, Path], tmp_path: Path) -> None:
    models = {}
    for name, template in (("base", None), ("chat", "A {{ x }}"), ("odd", "A {{ x }} ")):
        models[name] = tmp_path / name
        shutil.copytree(zoo[name], models[name])
        if template:
            (models[name] / "chat_template.jinja").write_text(template)
    config = arithmetic(models, "chat", "odd", chat_template="auto")
    out = merge(config, tmp_path / "auto")
    assert AutoTokenizer.from_pretrained(out).chat_template == "A {{ x }}"
    out = merge(arithmetic(models, "chat", chat_template="chatml"), tmp_path / "named")
    tokenizer = AutoTokenizer.from_pretrained(out)
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "<|im_start|>user\nhi<|im_end|>\n"
    literal = "{% for m in messages %}{{ m.content }}{% endfor %}"
    out = merge(arithmetic(models, "chat", chat_template=literal), tmp_path / "literal")
    assert AutoTokenizer.from_pretrained(out).chat_template == literal
    with pytest.raises(ConfigError, match='did you mean "chatml"'):
        merge(arithmetic(models, "chat", chat_template="chatlm"), tmp_path / "none")


def test_tokens_are_added_to_a_tokenizer_json_alone(zoo: dict[str, Path], tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(zoo["base"], old)
    content = json.loads((old / "tokenizer.json").read_text())
    (old / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (old / "tokenizer.json").unlink()
    with pytest.raises(NotMergeable, match=r"vocab\.json: tokens can only.*save it again"):
        make_plan(parse_config(arithmetic({**zoo, "old": old}, "chat", base="old")))
    config = arithmetic({**zoo, "old": old}, "chat", base="old", tokenizer_source="base")
    out = merge(config, tmp_path / "out")
    assert len(load_file(out / "model.safetensors")[EMBEDDING]) == 280
