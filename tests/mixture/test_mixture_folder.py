"""A folder appears whole or not at all."""

import errno
import os

import pytest

from modelglue.errors import OutOfSpace, OutputExists
from modelglue.mixture.folder import copy_files, model_files, whole_folder

FICLONE = 0x40049409
PIECE = 8 << 20


def test_the_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "deep" / "out"
    with whole_folder(out, nbytes=0) as folder:
        (folder / "a").write_text("x")
        assert not out.exists()
    assert (out / "a").read_text() == "x"
    assert os.listdir(out.parent) == ["out"]


def fill_and_fail(out):
    with whole_folder(out, nbytes=0) as folder:
        (folder / "a").write_text("x")
        raise ZeroDivisionError


def test_an_exception_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fill_and_fail(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(OutputExists, match="out is there"),
        whole_folder(tmp_path / "out", nbytes=0),
    ):
        pytest.fail("the block was entered")


def test_what_appeared_meanwhile_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OutputExists), whole_folder(out, nbytes=0):
        out.write_text("theirs")
    assert os.listdir(tmp_path) == ["out"]
    assert out.read_text() == "theirs"


def test_too_little_space_is_known_beforehand(tmp_path):
    with pytest.raises(OutOfSpace, match="GB free"), whole_folder(tmp_path / "out", nbytes=1 << 60):
        pytest.fail("the block was entered")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_cleared(tmp_path):
    process = os.fork()
    if process == 0:
        with whole_folder(tmp_path / "out", nbytes=0) as folder:
            (folder / "a").write_text("half of it")
            os._exit(9)
    os.waitpid(process, 0)
    assert len(os.listdir(tmp_path)) == 1
    assert not (tmp_path / "out").exists()
    with whole_folder(tmp_path / "out", nbytes=0):
        pass
    assert os.listdir(tmp_path) == ["out"]


def test_copies_are_equal_byte_for_byte_with_links_followed(tmp_path):
    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir(parents=True)
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ x }}")
    (source / "checkpoint-500").mkdir()
    (source / "checkpoint-500" / "optimizer.pt").write_text("not the model")
    (tmp_path / "blob").write_bytes(os.urandom(100_000))
    (source / "model.safetensors").symlink_to(tmp_path / "blob")
    (source / ".lock").touch()
    (source / "empty").touch()

    files = model_files(source)
    copy_files(files, source, tmp_path / "target")

    assert [str(file) for file in files] == [
        "additional_chat_templates/tools.jinja",
        "empty",
        "model.safetensors",
    ]
    for file in files:
        assert (tmp_path / "target" / file).read_bytes() == (source / file).read_bytes()
    assert not (tmp_path / "target" / "model.safetensors").is_symlink()


def source_of(folder, content):
    (folder / "a").mkdir()
    (folder / "a" / "x").write_bytes(content)
    return model_files(folder / "a"), folder / "a", folder / "b"


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, 3 * PIECE + 4097])
def test_pieces_of_a_large_file_come_to_their_places(tmp_path, size):
    copy_files(*source_of(tmp_path, os.urandom(size)))
    assert (tmp_path / "b" / "x").read_bytes() == (tmp_path / "a" / "x").read_bytes()


def test_blocks_are_shared_where_the_disk_can(tmp_path, monkeypatch):
    def clone(target, request, source):
        assert request == FICLONE
        os.write(target, b"shared " + os.pread(source, 100, 0))

    monkeypatch.setattr("fcntl.ioctl", clone)
    copy_files(*source_of(tmp_path, b"blocks"))
    assert (tmp_path / "b" / "x").read_bytes() == b"shared blocks"


def test_a_full_disk_is_not_mistaken_for_one_that_cannot_share(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="full"):
        copy_files(*source_of(tmp_path, b"x"))


def test_a_file_that_is_cut_off_meanwhile_is_an_error(tmp_path, monkeypatch):
    files, source, target = source_of(tmp_path, b"x" * 100)

    def cut(*_):
        os.truncate(source / "x", 10)
        return read(*_)

    read = os.preadv
    monkeypatch.setattr(os, "preadv", cut)
    with pytest.raises(OSError, match="x became shorter"):
        copy_files(files, source, target)
