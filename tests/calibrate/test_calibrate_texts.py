"""Calibration text, read and cut."""

from pathlib import Path

import pytest

import tiny
from modelglue.calibrate.texts import read_texts, sequences
from modelglue.errors import InputError
from modelglue.evaluate.encoding import Encoder


def test_a_text_file_is_a_document_a_line_or_one(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffone\r\n\n  \ntwo\x0c\u2028two\n".encode())
    assert read_texts(file) == ["one", "two\x0c\u2028two"]
    assert read_texts(file, whole=True) == ["one\r\n\n  \ntwo\x0c\u2028two\n"]


def test_json_lines_hold_a_document_each(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "a\\u2028b", "id": 1}\n\n{"text": "two\\nlines"}\n')
    assert read_texts(file) == ["a\u2028b", "two\nlines"]


def test_all_wrong_lines_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": 3}\n{"text": "fine"}\n[1]\n{"text": \n{"text": "\\ud800"}\n')
    with pytest.raises(InputError) as wrong:
        read_texts(file)
    assert all(f"text.jsonl:{line}: " in str(wrong.value) for line in (1, 3, 4, 5))
    assert "text.jsonl:2" not in str(wrong.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", b" \n\n", "holds no text"),
        ("text.jsonl", b"", "holds no text"),
        ("text.txt", b"ab\xff", "byte 2 is not UTF-8"),
        ("text.csv", b"a", r"a \.txt or a \.jsonl file"),
    ],
)
def test_a_file_without_text_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(tmp_path / name)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "calibration.txt").write_text("a")
    with pytest.raises(InputError, match=r'did you mean "calibration\.txt"'):
        read_texts(tmp_path / "calibrations.txt")


def test_long_documents_go_on_in_further_sequences() -> None:
    encoder = Encoder(tiny.tokenizer(), 4)
    [whole] = Encoder(tiny.tokenizer(), 100).encode(["abcdefgh"])
    assert sequences(["abcdefgh"], encoder) == [whole[:4], whole[4:]]


def test_a_rest_of_one_token_is_left_out() -> None:
    encoder = Encoder(tiny.tokenizer(), 4)
    found = sequences(["abcde", "xy", "z"], encoder)
    assert [len(sequence) for sequence in found] == [4, 2]


def test_tokens_stop_where_they_should() -> None:
    encoder = Encoder(tiny.tokenizer(), 4)
    found = sequences(["abcdefgh", "ijkl", "mnop"] * 200, encoder, tokens=11)
    assert [len(sequence) for sequence in found] == [4, 4, 3]
