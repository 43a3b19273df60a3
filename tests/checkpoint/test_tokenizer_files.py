"""Tokenizer files edited as text, against what the tokenizers library makes of them."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import tiny
from modelglue.checkpoint.chat_templates import (
    KNOWN,
    find_template,
    template_of,
    template_problem,
    with_template,
)
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.sentencepiece import pieces
from modelglue.checkpoint.tokenizer import same_vocabulary, tokens_of, vocabulary
from modelglue.checkpoint.tokenizer_files import (
    added_token,
    edited,
    next_number,
    other_files,
    settings_of,
    tokenizer_files,
)
from modelglue.errors import CorruptCheckpoint, NotMergeable

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<x>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<y>"]})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    return tmp_path


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_added_tokens_are_told_from_the_models_own(folder: Path) -> None:
    tokens = tokens_of(folder)
    assert list(tokens.added) == ["<pad>", "<s>", "</s>", "<unk>", "<x>", "<y>"]
    assert tokens.ordinary == 260
    assert tokens.ids == AutoTokenizer.from_pretrained(folder).get_vocab()


def test_a_new_token_gets_the_number_that_the_library_gives(folder: Path, tmp_path: Path) -> None:
    number = next_number(tokens_of(folder))
    add = [
        {"id": number, **added_token("<new>")},
        {"id": number + 1, **added_token("<stop>", {"special": True, "normalized": False})},
    ]
    out = write(tmp_path / "out", edited(tokenizer_files(folder), add=add))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab() == vocabulary(out)
    assert tokenizer.tokenize("a<new>b<stop>") == ["a", "<new>", "b", "<stop>"]
    reference = AutoTokenizer.from_pretrained(folder)
    reference.add_tokens(["<new>"])
    reference.add_tokens(["<stop>"], special_tokens=True)
    assert tokenizer.get_vocab() == reference.get_vocab()
    assert not (out / "merges.txt").exists()


def test_a_token_that_is_left_out_is_gone_from_all_files(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {"260": {"content": "<x>"}, "261": {"content": "<y>"}}
    settings["pad_token"] = {"content": "<y>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<y>", "eos_token": "</s>"}')
    files = edited(tokenizer_files(folder), drop={"<y>"})
    assert not [name for name, data in files.items() if b"<y>" in data]
    assert json.loads(files["special_tokens_map.json"]) == {"eos_token": "</s>"}
    assert next_number(tokens_of(folder), without={"<y>"}) == 261


def test_new_tokens_enter_the_decoder_too(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {"260": {"content": "<x>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    files = edited(tokenizer_files(folder), add=[{"id": 262, **added_token("<new>")}])
    decoder = json.loads(files["tokenizer_config.json"])["added_tokens_decoder"]
    assert decoder["262"] == {
        "content": "<new>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }


def test_files_are_told_apart(folder: Path) -> None:
    assert set(other_files(folder)) == {"generation_config.json"}
    assert "generation_config.json" not in tokenizer_files(folder)


@dataclass(eq=False)
class Adapted(Checkpoint):
    """As an adapter on a base: two folders."""

    folders: tuple[Path, ...]


@pytest.mark.parametrize("where", ["settings", "file", "both"])
def test_an_adapters_tokenizer_and_template_are_taken_whole(tmp_path: Path, where: str) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder, said in ((base, "BASE"), (adapter, "ADAPTER")):
        tiny.tokenizer().save_pretrained(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        if where != "file" and folder == adapter:
            settings["chat_template"] = said
        else:
            (folder / "chat_template.jinja").write_text(said)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "tokenizer.model").write_bytes(b"contradicts")
    (base / "special_tokens_map.json").write_text('{"eos_token": "<other>"}')
    if where == "both":
        (adapter / "tokenizer.json").unlink()
        (adapter / "tokenizer_config.json").write_text('{"chat_template": "ADAPTER", "x": 1}')
    files = tokenizer_files(Adapted((adapter, base)))
    out = write(tmp_path / "out", files)
    assert AutoTokenizer.from_pretrained(out).chat_template == "ADAPTER"
    assert not [name for name, data in files.items() if b"BASE" in data]
    whole = base if where == "both" else adapter
    assert ("tokenizer.model" in files) == (whole == base)
    assert settings_of(Adapted((adapter, base)), "tokenizer_config.json").get("x") is None
    (adapter / "chat_template.jinja").unlink(missing_ok=True)
    (adapter / "tokenizer_config.json").write_text("{}")
    assert tokenizer_files(Adapted((adapter, base)))["chat_template.jinja"] == b"BASE"


def test_a_table_with_gaps_takes_no_more_tokens(tmp_path: Path) -> None:
    content = {"model": {"vocab": {"a": 0, "b": 7}}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(NotMergeable, match=r"not numbered in one piece.*'b' is 7"):
        next_number(tokens_of(tmp_path))


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


def sentencepiece(*texts: str) -> bytes:
    """As the format has it: a piece with text, score and kind; then settings of the trainer."""
    one = [
        field(1, text.encode()) + b"\x15" + struct.pack("<f", -1) + b"\x18\x03" for text in texts
    ]
    return b"".join(field(1, piece) for piece in one) + field(
        2, field(1, b"corpus.txt") + b"\x18\x07"
    )


def test_sentencepiece_models_are_read(tmp_path: Path) -> None:
    assert pieces(sentencepiece("<unk>", "▁a", "b")) == ["<unk>", "▁a", "b"]
    for name, texts in (("a", "xyz"), ("b", "xzy")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(sentencepiece(*texts))
    (tmp_path / "a" / "added_tokens.json").write_text('{"<new>": 3}')
    assert vocabulary(tmp_path / "a") == {"x": 0, "y": 1, "z": 2, "<new>": 3}
    assert "'y' is number 1 in one and 2" in str(same_vocabulary(tmp_path / "a", tmp_path / "b"))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("vocab.json", b'{"x": 0, "y": 1}'),
        ("vocab.txt", b"x\ny\n"),
        ("tokenizer.model", sentencepiece("x", "y")),
        ("spiece.model", sentencepiece("x", "y")),
        ("sentencepiece.bpe.model", sentencepiece("x", "y")),
    ],
)
def test_tokens_added_beside_a_table_are_compared(tmp_path: Path, name: str, table: bytes) -> None:
    added = {
        "plain": {},
        "a": {"added_tokens.json": '{"<a>": 2}'},
        "b": {"added_tokens.json": '{"<b>": 2}'},
        "c": {"tokenizer_config.json": '{"added_tokens_decoder": {"2": {"content": "<a>"}}}'},
    }
    for folder, files in added.items():
        write(tmp_path / folder, {name: table, **{n: text.encode() for n, text in files.items()}})
    assert vocabulary(tmp_path / "c") == {"x": 0, "y": 1, "<a>": 2}
    assert same_vocabulary(tmp_path / "a", tmp_path / "c") is None
    assert "'<a>'" in str(same_vocabulary(tmp_path / "a", tmp_path / "b"))
    assert "3 tokens against 2" in str(same_vocabulary(tmp_path / "a", tmp_path / "plain"))
    (tmp_path / "plain" / "added_tokens.json").write_text('{"<a>": 2}')
    assert same_vocabulary(tmp_path / "a", tmp_path / "plain") is None


@pytest.mark.parametrize("decoder", ["[1]", '{"two": {"content": "x"}}', '{"2": "x"}', '{"2": {}}'])
def test_a_broken_list_of_added_tokens_is_refused(tmp_path: Path, decoder: str) -> None:
    (tmp_path / "vocab.json").write_text('{"x": 0}')
    (tmp_path / "tokenizer_config.json").write_text(f'{{"added_tokens_decoder": {decoder}}}')
    with pytest.raises(CorruptCheckpoint, match=r"tokenizer_config\.json: added_tokens_decoder"):
        vocabulary(tmp_path)


def test_every_kind_of_tokenizer_goes_along(tmp_path: Path) -> None:
    names = {"spm.model", "tiktoken.model", "qwen.tiktoken", "spiece.model", "tekken.json"}
    write(tmp_path / "m", dict.fromkeys([*names, "video_preprocessor_config.json"], b"{}"))
    assert set(tokenizer_files(tmp_path / "m")) == names
    assert set(other_files(tmp_path / "m")) == {"video_preprocessor_config.json"}


@pytest.mark.parametrize("data", [b"", b"IQ== 0\nIg== 1\n", sentencepiece("a")[:-1], b"\x0a\x7f"])
def test_what_is_no_sentencepiece_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match=r"tokenizer\.model cannot be read"):
        vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "alpaca",
            "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye"
            "\n\n### Response:\n",
        ),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "exaone",
            "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
            "[|user|]Bye\n[|assistant|]",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "mistral",
            "<s> [INST] Be brief.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]",
        ),
    ],
)
def test_known_templates_render_their_format(name: str, expected: str) -> None:
    said: Any = tiny.tokenizer().apply_chat_template(
        TALK, chat_template=KNOWN[name], tokenize=False, add_generation_prompt=True
    )
    assert said == expected


def test_a_template_is_found_wherever_a_folder_keeps_it(tmp_path: Path) -> None:
    assert template_of(tmp_path) is None
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert template_of(tmp_path) == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert template_of(tmp_path) == "J"


def test_auto_takes_what_most_models_bring(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    for folder, template in zip(folders, ["A", "B", "B ", None]):
        folder.mkdir()
        if template:
            (folder / "chat_template.jinja").write_text(template)
    assert find_template("auto", folders) == "B"
    assert find_template("auto", folders[3:]) is None
    assert find_template("auto", folders[:2]) == "A"


def test_a_chosen_template_is_the_only_one() -> None:
    files = {
        "tokenizer_config.json": b'{"chat_template": "old", "pad_token": "p"}',
        "chat_template.json": b"{}",
        "additional_chat_templates/tool.jinja": b"",
    }
    written = with_template(files, "new")
    assert set(written) == {"tokenizer_config.json", "chat_template.jinja"}
    assert json.loads(written["tokenizer_config.json"]) == {"pad_token": "p"}


def test_a_misspelt_template_is_told() -> None:
    assert template_problem("auto") is template_problem("chatml") is None
    assert template_problem("{{ messages }}") is None
    assert 'did you mean "llama3"' in str(template_problem("lama3"))
