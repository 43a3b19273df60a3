import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelglue.checkpoint.reader import Checkpoint

LATER = 1_000_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/modelglue/fingerprints"


@pytest.fixture
def model(llamas: list[Path], tmp_path: Path) -> Path:
    folder = shutil.copytree(llamas[0], tmp_path / "m")
    time.sleep(0.06)  # until its files count as settled
    return folder


def forbid_reading(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("bytes were read")

    monkeypatch.setattr(checkpoint._descriptors, "read_into", refuse)


def change(folder: Path) -> None:
    """Another value in the last four bytes, in a new file of the same size."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.with_suffix(".new").write_bytes(data[:-4] + b"\0\0\1\0")
    os.replace(file.with_suffix(".new"), file)


def test_a_fingerprint_changes_with_one_value(model: Path) -> None:
    before = Checkpoint.open(model).fingerprint()
    change(model)
    assert Checkpoint.open(model).fingerprint() != before


def test_a_fingerprint_changes_with_the_config(model: Path) -> None:
    before = Checkpoint.open(model).fingerprint()
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace("silu", "gelu"))
    assert Checkpoint.open(model).fingerprint() != before


def test_a_fingerprint_does_not_depend_on_place_or_sharding(
    llamas: list[Path], model: Path
) -> None:
    assert Checkpoint.open(llamas[0]).fingerprint() == Checkpoint.open(model).fingerprint()


def test_bytes_are_read_once_and_the_rest_comes_from_the_cache(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Checkpoint.open(model).fingerprint()
    again = Checkpoint.open(model)
    forbid_reading(again, monkeypatch)
    assert again.fingerprint() == first
    assert not again.digesting().needed


def test_a_pass_that_reads_the_bytes_anyway_feeds_the_fingerprint(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Checkpoint.open(model).fingerprint()
    shutil.rmtree(cache)
    checkpoint = Checkpoint.open(model)
    digesting = checkpoint.digesting()
    assert digesting.needed

    def feed(name: str) -> None:
        start = 0
        for chunk in checkpoint.chunks(name, size=999):
            digesting.update(name, chunk, start=start)
            start += len(chunk)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(feed, checkpoint.tensors))
    forbid_reading(checkpoint, monkeypatch)
    assert digesting.finish() == expected


def test_bytes_that_come_out_of_order_are_read_again(model: Path, cache: Path) -> None:
    expected = Checkpoint.open(model).fingerprint()
    shutil.rmtree(cache)
    checkpoint = Checkpoint.open(model)
    digesting = checkpoint.digesting()
    name = "model.embed_tokens.weight"
    raw = checkpoint.read(name).numpy().tobytes()
    digesting.update(name, raw[1000:], start=1000)
    digesting.update(name, raw[:1000], start=0)
    digesting.update("model.norm.weight", checkpoint.read("model.norm.weight").numpy(), start=0)
    assert digesting.finish() == expected


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(model: Path) -> None:
    file = model / "model.safetensors"
    status = file.stat()
    before = Checkpoint.open(model).fingerprint()
    change(model)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert Checkpoint.open(model).fingerprint() != before


def test_a_file_that_may_still_be_changing_is_not_remembered(model: Path, cache: Path) -> None:
    now = time.time_ns() + LATER
    os.utime(model / "model.safetensors", ns=(now, now))
    Checkpoint.open(model).fingerprint()
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "half", "\0" * 64])
def test_a_damaged_cache_is_ignored(model: Path, cache: Path, content: str) -> None:
    expected = Checkpoint.open(model).fingerprint()
    (entry,) = cache.iterdir()
    entry.write_text(content)
    assert Checkpoint.open(model).fingerprint() == expected
    assert entry.read_text().strip() == expected


def test_a_cache_that_cannot_be_written_does_no_harm(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first = Checkpoint.open(model).fingerprint()
    assert first == Checkpoint.open(model).fingerprint()


def test_the_same_values_in_another_dtype_are_another_content(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    other = shutil.copytree(model, tmp_path / "other")
    name = "model.norm.weight"
    assert torch.equal(tensors[name], torch.ones(32))
    save_file(tensors | {name: tensors[name].view(torch.int32)}, other / "model.safetensors")
    assert Checkpoint.open(other).fingerprint() != Checkpoint.open(model).fingerprint()
