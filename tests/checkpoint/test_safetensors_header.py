import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modelglue.checkpoint.safetensors_header import read_header
from modelglue.errors import CheckpointError, CorruptCheckpoint, UnsupportedCheckpoint


def write(path: Path, header: Any, data: bytes = b"\0" * 16, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, *, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"a": entry(0, 8), "b": entry(8, 16)}


def test_a_good_header_gives_every_tensors_place(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(5).bfloat16()}, tmp_path / "f")
    tensors, status = read_header(tmp_path / "f")
    assert (tensors["a"].dtype, tensors["a"].shape, tensors["a"].nbytes) == ("F32", (2, 3), 24)
    assert max(spec.offset + spec.nbytes for spec in tensors.values()) == status.st_size


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    tensors, _ = read_header(write(tmp_path / "f", {"__metadata__": {"format": "pt"}, **GOOD}))
    assert list(tensors) == ["a", "b"]


def test_elements_smaller_than_a_byte_are_known(tmp_path: Path) -> None:
    tensors, _ = read_header(write(tmp_path / "f", {"a": entry(0, 16, dtype="F4", shape=[32])}))
    assert tensors["a"].nbytes == 16


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        pytest.param(GOOD, b"\0" * 15, "truncated", id="truncated"),
        pytest.param(GOOD, b"\0" * 17, "too long", id="overlong"),
        pytest.param({"a": entry(0, 8), "b": entry(4, 16)}, None, "b overlaps a", id="overlap"),
        pytest.param({"a": entry(0, 4), "b": entry(8, 16)}, None, "b leaves a hole", id="hole"),
        pytest.param({"a": entry(4, 16)}, None, "a leaves a hole", id="hole at the start"),
        pytest.param({"a": entry(8, 16), "b": entry(8, 16)}, None, "hole", id="twice"),
        pytest.param({"a": entry(0, 16, shape=[3])}, None, "a: F32", id="shape against bytes"),
        pytest.param({"a": entry(0, 16, shape=[-4])}, None, "no list of sizes", id="negative"),
        pytest.param({"a": entry(0, 16, shape=[-2, -2])}, None, "no list", id="two negatives"),
        pytest.param({"a": entry(0, 16, shape=[1 << 61] * 60)}, None, "a: F32", id="huge"),
        pytest.param({"a": entry(0, 16, shape=[10**400])}, None, "no list", id="beyond 64 bits"),
        pytest.param({"a": entry(0, 16, shape=[4.0])}, None, "no list", id="shape of floats"),
        pytest.param({"a": entry(0, 16, shape=[True, 4])}, None, "no list", id="shape of bools"),
        pytest.param({"a": entry(0, 16, shape="4")}, None, "no list", id="shape as text"),
        pytest.param({"a": entry(0, 16, shape=[1] * 99)}, None, "no list", id="99 dimensions"),
        pytest.param({"a": entry(16, 0, shape=[4])}, None, "are no range", id="backwards"),
        pytest.param({"a": entry(-16, 0)}, None, "are no range", id="negative offsets"),
        pytest.param({"a": {"dtype": "F32", "shape": [4]}}, None, "no range", id="no offsets"),
        pytest.param({"a": {"shape": [4], "data_offsets": [0, 16]}}, None, "no dtype", id="dtype"),
        pytest.param({"a": 5}, None, "a: the header's entry", id="entry is a number"),
        pytest.param(b'{"a": {"dtype"', None, "not valid JSON", id="half a header"),
        pytest.param(b"[1, 2]", None, "begin with", id="a list"),
        pytest.param(b'{"\xff": 1}', None, "not UTF-8", id="not UTF-8"),
        pytest.param(b'{"a": 1, "a": 2}', None, "'a' stands twice", id="duplicate"),
        pytest.param(b'{"a": ' + b"[" * 50_000, None, "nested too deeply", id="deep"),
        pytest.param(b'{"a": ' + b"9" * 9_000 + b"}", None, "not valid JSON", id="long number"),
        pytest.param(b"", None, "begin with", id="nothing"),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, header: Any, data: bytes | None, words: str
) -> None:
    path = write(tmp_path / "shard.safetensors", header, b"\0" * 16 if data is None else data)
    with pytest.raises(CorruptCheckpoint, match=words) as caught:
        read_header(path)
    assert "shard.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [0, 10**6, 2**40, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused_before_anything_is_allocated(
    tmp_path: Path, length: int
) -> None:
    with pytest.raises(CorruptCheckpoint):
        read_header(write(tmp_path / "f", GOOD, length=length))


def test_an_unknown_dtype_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    path = write(tmp_path / "f", {"a": entry(0, 16, dtype="BF61")})
    with pytest.raises(UnsupportedCheckpoint, match=r'a: unknown dtype .* did you mean "BF16"'):
        read_header(path)


@pytest.mark.parametrize("size", [0, 3, 7])
def test_a_stub_of_a_file_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(b"\0" * size)
    with pytest.raises(CorruptCheckpoint, match="too few"):
        read_header(tmp_path / "f")


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read_header(tmp_path)


def test_twenty_thousand_tensors_open_fast(tmp_path: Path) -> None:
    import time

    names = [f"model.layers.{i}.mlp.experts.{j}.w1.weight" for i in range(100) for j in range(200)]
    header = {name: entry(4 * i, 4 * i + 4) for i, name in enumerate(names)}
    path = write(tmp_path / "f", header, b"\0" * 4 * len(names))
    start = time.process_time()
    tensors, _ = read_header(path)
    assert len(tensors) == 20_000
    assert time.process_time() - start < 2
