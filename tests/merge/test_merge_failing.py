"""A full disk, a read error, an input cut off: told, the work kept, and nothing looks whole."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import killed_merge
import pytest
from stopped_merges import (
    assert_is_undisturbed,
    assert_nothing_looks_whole,
    config_of,
    run,
    settle,
)

from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.errors import CorruptCheckpoint, OutOfSpace
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.stream import execute
from modelglue.merge.plan.merge_plan import make_plan


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelglue.merge.chunk.CHUNK", killed_merge.CHUNK)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int, int], None]]:
    """Make a system call fail from its `number`th time on."""

    def fail(call: str, number: int, code: int) -> None:
        def raises(*_: Any, **__: Any) -> None:
            raise OSError(code, os.strerror(code))

        good = getattr(os, call)
        begin = killed_merge.counted(good, number, lambda *_, **__: setattr(os, call, raises))
        monkeypatch.setattr(os, call, begin)

    yield fail
    monkeypatch.undo()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_in_mid_merge_keeps_the_work(
    code: int,
    failing: Callable[[str, int, int], None],
    llamas: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle()
    pwrite = os.pwrite
    failing("posix_fallocate", 0, errno.EOPNOTSUPP)
    failing("pwrite", 30, code)
    out = tmp_path / "out"
    with pytest.raises(OutOfSpace, match=r"disk is full.* is kept in .*\.partial: make room"):
        run(config_of("ties", llamas), out)
    assert_nothing_looks_whole(out)
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert run(config_of("ties", llamas), out).resumed > 0
    assert_is_undisturbed(out, config_of("ties", llamas))


def test_a_limit_on_file_size_is_met_before_anything_is_merged(
    llamas: list[Path], tmp_path: Path
) -> None:
    program = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from modelglue.errors import OutOfSpace
from modelglue import merge
def progress(*_): sys.exit("merged")
try:
    merge({config_of("linear", llamas)!r}, {str(tmp_path / "new" / "out")!r}, progress=progress)
except OutOfSpace as error:
    sys.exit(0 if "disk is full" in str(error) else str(error))
sys.exit("not noticed")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert os.listdir(tmp_path) == []


def can_mount() -> bool:
    """Whether a process may have a file system of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    done = subprocess.run([unshare, "-rm", "mount", "-t", "tmpfs", "t", "/mnt"], check=False)
    return done.returncode == 0


@pytest.mark.parametrize(
    ("beyond", "left"),
    [(-8192, []), (8192, ["model.safetensors"])],
    ids=["by the weights", "by the files beside them"],
)
def test_a_real_disk_that_is_filled(
    beyond: int, left: list[str], llamas: list[Path], tmp_path: Path
) -> None:
    """Nothing is begun where the weights have no room; what was done is kept where they have."""
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    config = config_of("linear", llamas)
    weights = run(config, tmp_path / "whole").path / "model.safetensors"
    program = f"""
import glob, os, sys
from modelglue import errors, merge
try:
    merge({config!r}, "{tmp_path}/disk/out")
except errors.OutOfSpace:
    found = glob.glob("{tmp_path}/disk/.out.*.partial/*.safetensors")
    assert not os.path.exists("{tmp_path}/disk/out")
    sys.exit([os.path.basename(path) for path in found] != {left!r})
sys.exit("not noticed")
"""
    (tmp_path / "disk").mkdir()
    size = weights.stat().st_size + beyond
    mount = f'mount -t tmpfs -o size={size} t {tmp_path}/disk && exec $0 -c "$1"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_too_little_room_is_noticed_before_a_weight_is_read(
    llamas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(parse_config(config_of("ties", llamas)))
    room = shutil.disk_usage(tmp_path)._replace(free=plan.bytes_to_write)  # none for the header
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    monkeypatch.setattr(os, "preadv", None)
    monkeypatch.setattr(os, "pwrite", None)
    with pytest.raises(OutOfSpace, match=f"has {room.free:,} free"):
        execute(plan, tmp_path / "new" / "out")
    assert os.listdir(tmp_path) == []


def test_a_read_error_in_mid_merge_is_told_and_the_rerun_goes_on(
    failing: Callable[[str, int, int], None],
    llamas: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of("linear", llamas)
    plan = make_plan(parse_config(config))
    # As if they were large: what is tiny is read ahead, in a few calls.
    monkeypatch.setattr("modelglue.merge.engine.stream._TINY", 0)
    failing("preadv", 90, errno.EIO)
    out = tmp_path / "out"
    with pytest.raises(CorruptCheckpoint, match=r"safetensors: reading at byte .* failed"):
        execute(plan, out)
    assert_nothing_looks_whole(out)
    monkeypatch.undo()
    monkeypatch.setattr("modelglue.merge.chunk.CHUNK", killed_merge.CHUNK)
    assert run(config, out).resumed > 0
    assert_is_undisturbed(out, config)


@pytest.mark.parametrize("when", ["planned", "begun"])
def test_an_input_that_is_cut_off_meanwhile_is_told(
    when: str, llamas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(llamas[1], cut)
    weights = cut / "model.safetensors"
    whole = weights.read_bytes()

    def truncate(*_: Any, **__: Any) -> None:
        os.truncate(weights, len(whole) // 2)

    config = config_of("linear", [llamas[0], cut, llamas[2]])
    plan = make_plan(parse_config(config))
    out = tmp_path / "merged" / "out"
    settle()
    with monkeypatch.context() as patch:
        if when == "planned":
            truncate()
            told = r"cut/model\.safetensors: the file changed"
        else:
            write = killed_merge.counted(CheckpointWriter.write_bytes, 5, truncate)
            patch.setattr(CheckpointWriter, "write_bytes", write)
            told = r"cut/model\.safetensors: the file ends at byte"
        with pytest.raises(CorruptCheckpoint, match=told):
            execute(plan, out, threads=1)
    assert_nothing_looks_whole(out)
    with pytest.raises(CorruptCheckpoint, match="cut"):
        run(config, out)
    weights.write_bytes(whole)
    assert run(config, out).resumed == 0
    assert_is_undisturbed(out, config)
