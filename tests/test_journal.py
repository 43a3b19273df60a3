"""What the journal and the atomic writers promise."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from modelglue.journal import Journal, read_json, write_json


def test_records_are_read_back_in_order(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for number in range(5):
            journal.append({"n": number, "text": "naïve\n"})
    with Journal(tmp_path / "j") as journal:
        assert [record["n"] for record in journal] == list(range(5))


@pytest.mark.parametrize("torn", [b"{", b'{"n": 1', b'{"n": 1}', b"\xff\x00"])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(b'{"n":0}\n' + torn)
    with Journal(path) as journal:
        assert list(journal) == [{"n": 0}]
        journal.append({"n": 2})
    assert path.read_bytes() == b'{"n":0}\n{"n":2}\n'


def _append_forever(path: Path) -> None:
    with Journal(path) as journal:
        for number in range(10**9):
            journal.append({"n": number, "padding": "x" * 3000})


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "j"
    process = multiprocessing.get_context("fork").Process(target=_append_forever, args=(path,))
    process.start()
    while not path.exists() or path.stat().st_size < 100_000:
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    with Journal(path) as journal:
        assert [record["n"] for record in journal] == list(range(len(list(journal))))
        assert len(list(journal)) > 30


def test_a_json_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]
    assert json.loads(path.read_text()) == {"a": 1}
