"""What a writer leaves for the next one of the same purpose, and what the next one makes of it."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelglue.checkpoint import durable
from modelglue.checkpoint.durable import FINISHED, Durable
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.staging import PURPOSE, Staging
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.errors import CorruptCheckpoint, NonFiniteTensor, OutOfSpace

LAYOUT = dict.fromkeys("abcd", ("U8", (100,)))


def data(name: str) -> bytes:
    return name.encode() * 100


def write(out: Path, names: str, **settings: Any) -> frozenset[str]:
    """Write these tensors and commit if they are all that was missing."""
    settings = {"purpose": "p", **settings}
    with CheckpointWriter(out, settings.pop("layout", LAYOUT), **settings) as writer:
        for name in names:
            writer.write_bytes(name, data(name))
        if writer.finished | set(names) == set(LAYOUT):
            writer.commit(config={"model_type": "llama"})
        else:
            raise SystemExit
        return writer.finished


def stop(out: Path, names: str, error: BaseException | None = None, **settings: Any) -> None:
    """Write these tensors (some in two pieces: "ab/" is b's first half) and be stopped."""
    settings = {"purpose": "p", **settings}
    error = error or SystemExit()

    def work() -> None:
        with CheckpointWriter(out, settings.pop("layout", LAYOUT), **settings) as writer:
            for name, after in zip(names, names[1:] + " "):
                if name != "/":
                    writer.write_bytes(name, data(name)[: 50 if after == "/" else 100])
            raise error

    with pytest.raises(type(error)):
        work()


def left(tmp_path: Path) -> Path:
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith(".out.")
    return folder


def assert_whole(tmp_path: Path) -> None:
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]
    with Checkpoint.open(tmp_path / "out") as found:
        for name in LAYOUT:
            assert found.read(name).numpy().tobytes() == data(name)


def test_the_next_writer_goes_on_after_the_finished_tensors(tmp_path: Path) -> None:
    stop(tmp_path / "out", "abc/")
    assert (left(tmp_path) / FINISHED).read_text() == "a\nb\n"
    stop(tmp_path / "out", "d")
    assert write(tmp_path / "out", "c") == {"a", "b", "d"}
    assert_whole(tmp_path)


def test_what_is_finished_is_not_made_again_and_what_is_not_must_be(tmp_path: Path) -> None:
    stop(tmp_path / "out", "ab")
    weights = left(tmp_path) / "model.safetensors"
    before = weights.read_bytes()
    with CheckpointWriter(tmp_path / "out", LAYOUT, purpose="p") as writer:
        assert writer.finished == {"a", "b"}
        writer.write_bytes("c", data("c"))
        with pytest.raises(ValueError, match="d was not written from byte 0 to 100"):
            writer.commit(config={})
        assert weights.read_bytes() == before.replace(bytes(200), data("c") + bytes(100))


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), CorruptCheckpoint("an input"), OutOfSpace("full"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
def test_work_is_kept_where_nothing_was_wrong_with_it(tmp_path: Path, error: Exception) -> None:
    stop(tmp_path / "out", "ab", error)
    assert write(tmp_path / "out", "cd") == {"a", "b"}
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    "error",
    [NonFiniteTensor("a"), ZeroDivisionError()],
    ids=lambda error: type(error).__name__,
)
def test_work_that_failed_of_itself_is_dropped(tmp_path: Path, error: Exception) -> None:
    stop(tmp_path / "new" / "out", "ab", error)
    assert os.listdir(tmp_path) == []


def test_without_a_purpose_nothing_is_left_and_nothing_taken_over(tmp_path: Path) -> None:
    stop(tmp_path / "out", "ab", purpose=None)
    assert os.listdir(tmp_path) == []
    stop(tmp_path / "out", "ab")
    assert write(tmp_path / "out", "abcd", purpose=None) == frozenset()
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"purpose": "q"},
        {"layout": dict(reversed(LAYOUT.items()))},
        {"layout": {**LAYOUT, "a": ("I8", (100,))}},
        {"metadata": {"made": "otherwise"}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_purpose_or_layout_begins_anew(tmp_path: Path, other: dict[str, Any]) -> None:
    stop(tmp_path / "out", "ab")
    assert write(tmp_path / "out", "abcd", **other) == frozenset()
    assert_whole(tmp_path)


def test_other_shards_begin_anew(tmp_path: Path) -> None:
    stop(tmp_path / "out", "ab")
    assert write(tmp_path / "out", "abcd", max_shard_bytes=200) == frozenset()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 300)


def lose(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def scratch(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(20)
        file.write(b"\0\0\0\0")


@pytest.mark.parametrize("damage", [cut, lose, scratch])
def test_a_file_that_is_not_as_it_was_left_is_made_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    stop(tmp_path / "out", "ab")
    damage(left(tmp_path))
    assert write(tmp_path / "out", "abcd") == frozenset()
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    ("note", "finished"),
    [
        ("a\nb\n", "ab"),
        ("a\nb", "a"),  # torn: its bytes may be those of a longer name
        ("a\nz\n", "a"),
        ("", ""),
        ("b\nb\n\n", "b"),
    ],
)
def test_a_torn_or_strange_line_of_the_note_counts_for_nothing(
    tmp_path: Path, note: str, finished: str
) -> None:
    stop(tmp_path / "out", "ab")
    (left(tmp_path) / FINISHED).write_text(note)
    missing = "".join(sorted(set(LAYOUT) - set(finished)))
    assert write(tmp_path / "out", missing) == set(finished)
    assert_whole(tmp_path)


def test_a_line_after_a_torn_one_is_not_lost(tmp_path: Path) -> None:
    stop(tmp_path / "out", "ab")
    (left(tmp_path) / FINISHED).write_text("a\nb")
    stop(tmp_path / "out", "c")
    assert write(tmp_path / "out", "bd") == {"a", "c"}
    assert_whole(tmp_path)


@pytest.mark.parametrize("note", [b"\xff\xfe\n", None])
def test_a_note_that_cannot_be_read_counts_for_nothing(tmp_path: Path, note: bytes | None) -> None:
    stop(tmp_path / "out", "ab")
    path = left(tmp_path) / FINISHED
    path.unlink() if note is None else path.write_bytes(note)
    assert write(tmp_path / "out", "abcd") == frozenset()
    assert_whole(tmp_path)


def test_files_of_a_commit_that_was_cut_short_are_made_again(tmp_path: Path) -> None:
    stop(tmp_path / "out", "abcd")
    (left(tmp_path) / "config.json").write_text("{")
    (left(tmp_path) / "chat_template.jinja").write_text("of another merge")
    (left(tmp_path) / "additional_chat_templates").mkdir()
    assert write(tmp_path / "out", "") == set(LAYOUT)
    assert_whole(tmp_path)


def test_a_tensor_that_is_to_be_made_again_is_never_finished(tmp_path: Path) -> None:
    def work() -> None:
        with CheckpointWriter(tmp_path / "out", LAYOUT, purpose="p") as writer:
            for name in "ab":
                writer.write_bytes(name, data(name)[:50])
            writer.again("a")
            for name in "ab":
                writer.write_bytes(name, data(name)[50:], start=50)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert write(tmp_path / "out", "acd") == {"b"}
    assert_whole(tmp_path)


# What is noted is on the disk


def test_nothing_is_noted_before_its_bytes_are_synced(tmp_path: Path) -> None:
    synced: list[str] = []

    def sync() -> None:
        synced.append((tmp_path / FINISHED).read_text())

    note = Durable(tmp_path, sync)
    note.finish("a")
    note.close(flush=True)
    assert synced == [""]
    assert (tmp_path / FINISHED).read_text() == "a\n"
    assert Durable(tmp_path, sync).finished == {"a"}


def test_what_is_finished_during_a_sync_waits_for_the_next(tmp_path: Path) -> None:
    def sync() -> None:
        if "b" not in note._pending:
            note.finish("b")  # written too late for this sync
        assert "b" not in (tmp_path / FINISHED).read_text()

    note = Durable(tmp_path, sync)
    note.finish("a")
    note.close(flush=True)
    assert (tmp_path / FINISHED).read_text() == "a\n"


def test_every_so_many_bytes_are_synced_and_noted_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "SYNC_BYTES", 150)
    noted = []
    real = Durable._note

    def record(note: Durable) -> None:
        real(note)
        noted.append((tmp_path / FINISHED).read_text())

    monkeypatch.setattr(Durable, "_note", record)
    note = Durable(tmp_path, lambda: None)
    for name in "abcd":
        note.finish(name)
        note.wrote(100)
        if name in "bd":
            wait_for(lambda want=name: bool(noted) and f"{want}\n" in noted[-1])
    note.close(flush=False)
    assert noted == ["a\nb\n", "a\nb\nc\nd\n"]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def fails(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_sync_that_failed_in_the_background_fails_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells a lost write to one sync; the next one, at the end, would succeed."""
    monkeypatch.setattr(durable, "SYNC_BYTES", 1)

    def work() -> None:
        with CheckpointWriter(tmp_path / "out", LAYOUT, purpose="p") as writer:
            for name in LAYOUT:
                writer.write_bytes(name, data(name))
            assert writer._durable is not None
            writer._durable._thread.join()
            monkeypatch.undo()
            writer.commit(config={})

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        with pytest.raises(OSError, match="Input/output"):
            work()
    assert (left(tmp_path) / FINISHED).read_text() == ""
    assert write(tmp_path / "out", "abcd") == frozenset()
    assert_whole(tmp_path)


def test_what_cannot_be_synced_at_the_end_is_not_noted_and_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        stop(tmp_path / "out", "abcd")
    assert (left(tmp_path) / FINISHED).read_text() == ""
    assert write(tmp_path / "out", "abcd") == frozenset()
    assert_whole(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_commit_that_is_stopped_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    def raises(*_: object) -> None:
        monkeypatch.undo()
        raise error

    monkeypatch.setattr(os, call, raises)
    with pytest.raises(type(error)):
        write(tmp_path / "out", "abcd")
    assert not (tmp_path / "out").exists()
    # After a failed sync nothing is trusted that was not synced before.
    kept = call == "fsync" and not isinstance(error, OSError)
    with CheckpointWriter(tmp_path / "out", LAYOUT, purpose="p") as writer:
        assert writer.finished == (set(LAYOUT) if kept else set())
        for name in LAYOUT:
            writer.write_bytes(name, data(name))
        writer.commit(config={"model_type": "llama"})
    assert_whole(tmp_path)


def test_ctrl_c_twice_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", again)
        stop(tmp_path / "out", "ab", KeyboardInterrupt())
    assert write(tmp_path / "out", "abcd") == frozenset()
    assert_whole(tmp_path)


# Several


def test_two_writers_of_one_purpose_do_not_share_a_folder(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", LAYOUT, purpose="p") as first:
        first.write_bytes("a", data("a"))
        with pytest.raises(SystemExit):
            write(tmp_path / "out", "bc")
        for name in "bcd":
            first.write_bytes(name, data(name))
        first.commit(config={"model_type": "llama"})
    with pytest.raises(FileExistsError):
        Staging(tmp_path / "out").rename(tmp_path / "out")


def test_a_folder_that_another_process_holds_is_left_alone(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from modelglue.checkpoint.staging import Staging
staging = Staging(Path({str(tmp_path / "out")!r}), purpose="p")
sys.stdout.write(staging.folder.name + "\\n")
sys.stdout.flush()
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        theirs = tmp_path / child.stdout.readline().strip()
        ours = Staging(tmp_path / "out", purpose="p")
        assert not ours.taken_over
        assert ours.folder != theirs
        ours.remove()
        assert theirs.is_dir()
        child.kill()
        child.wait()
        later = Staging(tmp_path / "out", purpose="p")
        assert later.taken_over
        assert later.folder == theirs
        later.remove()
    assert os.listdir(tmp_path) == []


def test_of_several_folders_one_is_taken_and_the_rest_removed(tmp_path: Path) -> None:
    stagings = [Staging(tmp_path / "out", purpose=purpose) for purpose in "pqp"]
    for staging in stagings:
        staging.keep()
    (tmp_path / ".out.0000.partial").mkdir()  # no writer's
    (tmp_path / ".other.00000000.partial").mkdir()
    taken = Staging(tmp_path / "out", purpose="p")
    assert taken.folder in (stagings[0].folder, stagings[2].folder)
    assert (taken.folder / PURPOSE).read_text() == "p"
    assert len(list(tmp_path.iterdir())) == 3
    taken.remove()


def test_a_folder_without_a_purpose_is_nobodys(tmp_path: Path) -> None:
    Staging(tmp_path / "out").keep()
    staging = Staging(tmp_path / "out", purpose="")
    assert not staging.taken_over
    staging.remove()
    assert os.listdir(tmp_path) == []
