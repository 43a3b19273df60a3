"""Bytes past the page cache: wherever they lie, the file holds what was written."""

import errno
import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from modelglue.checkpoint import output_file
from modelglue.checkpoint.output_file import PAGE, OutputFile

SIZE = 5 * (1 << 20) + 777


def in_memory(data: np.ndarray, phase: int) -> memoryview:
    """The same bytes, beginning so many bytes into a page."""
    room = np.empty(len(data) + 2 * PAGE, np.uint8)
    start = (phase - room.ctypes.data) % PAGE
    room[start : start + len(data)] = data
    return room[start : start + len(data)].data


def pieces(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Ranges that cover the file, in any order, some of them small."""
    cuts = [0, *sorted(rng.integers(0, SIZE, 6).tolist()), SIZE]
    found = list(itertools.pairwise(cuts))
    rng.shuffle(found)
    return [(int(a), int(b)) for a, b in found]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_file_holds_what_was_written(tmp_path: Path, seed: int, alike: bool) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, SIZE, dtype=np.uint8)
    file = OutputFile(tmp_path / "f", create=SIZE)

    def write(start: int, stop: int) -> None:
        file.write(in_memory(data[start:stop], start + (0 if alike else 64)), start)

    threads = [threading.Thread(target=write, args=piece) for piece in pieces(rng)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.sync()
    file.close()
    assert (tmp_path / "f").read_bytes() == data.tobytes()


def refusing(monkeypatch: pytest.MonkeyPatch, file: OutputFile, after: int) -> list[int]:
    """A file system that takes so many direct writes, and no more."""
    taken: list[int] = []
    real = os.pwrite

    def pwrite(descriptor: int, view: memoryview, offset: int) -> int:
        if descriptor != file.descriptor:
            if len(taken) == after:
                raise OSError(errno.EINVAL, "not here")
            taken.append(offset)
            view = view[: 1 << 20]
        return real(descriptor, view, offset)

    monkeypatch.setattr(output_file.os, "pwrite", pwrite)
    return taken


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_file_system_that_stops_taking_direct_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    data = np.random.default_rng(after).integers(0, 256, SIZE, dtype=np.uint8)
    file = OutputFile(tmp_path / "f", create=SIZE)
    taken = refusing(monkeypatch, file, after)
    file.write(in_memory(data, 0), 0)
    file.close()
    assert len(taken) == after
    assert (tmp_path / "f").read_bytes() == data.tobytes()


def test_a_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_file, "_DIRECT", 0)
    data = np.arange(SIZE, dtype=np.uint8)
    file = OutputFile(tmp_path / "f", create=SIZE)
    file.write(in_memory(data, 0), 0)
    file.close()
    assert (tmp_path / "f").read_bytes() == data.tobytes()


def test_any_other_failure_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OutputFile(tmp_path / "f", create=SIZE)

    def pwrite(descriptor: int, view: memoryview, offset: int) -> int:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(output_file.os, "pwrite", pwrite)
    with pytest.raises(OSError, match="broken disk"):
        file.write(in_memory(np.zeros(SIZE, np.uint8), 0), 0)
    file.close()


def test_what_is_there_is_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        OutputFile(tmp_path / "f", create=SIZE)
    file = OutputFile(tmp_path / "f")
    assert file.nbytes == 4
    assert file.read(2) == b"mi"
    file.close()
