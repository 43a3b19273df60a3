import contextlib
import gc
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import CorruptCheckpoint, TensorNotFound, UnsupportedCheckpoint

NAME = "model.layers.0.mlp.up_proj.weight"


def save_folder(path: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


def test_a_single_file_reads_as_the_safetensors_library_reads_it(llamas: list[Path]) -> None:
    expected = load_all(llamas[0])
    with Checkpoint.open(llamas[0]) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        assert all(torch.equal(checkpoint.read(name), expected[name]) for name in expected)
        assert checkpoint.parameters == sum(tensor.numel() for tensor in expected.values())
        assert checkpoint.nbytes == 4 * checkpoint.parameters
        assert checkpoint.config["model_type"] == "llama"
        assert checkpoint.name == "base"


def test_shards_read_as_the_safetensors_library_reads_them(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m", max_shard_size="40KB", dtype=torch.bfloat16)
    assert len(list(folder.glob("*.safetensors"))) > 2
    expected = load_all(folder)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensors.keys() == expected.keys()
    assert all(torch.equal(checkpoint.read(name), expected[name]) for name in expected)


@pytest.mark.parametrize(
    "rows", [slice(0, 5), slice(7, 8), slice(60, None), slice(-3, None), slice(4, 4), slice(9, 2)]
)
def test_any_range_of_rows_can_be_read(llamas: list[Path], rows: slice) -> None:
    expected = load_all(llamas[0])[NAME][rows]
    checkpoint = Checkpoint.open(llamas[0])
    assert torch.equal(checkpoint.read(NAME, rows), expected)
    out = torch.full_like(expected, torch.nan)
    assert checkpoint.read(NAME, rows, out=out) is out
    assert torch.equal(out, expected)


def test_rows_with_a_step_are_refused(llamas: list[Path]) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="step 1"):
        Checkpoint.open(llamas[0]).read(NAME, slice(0, 8, 2))


@pytest.mark.parametrize(
    "out",
    [
        pytest.param(lambda: torch.empty(64, 32, dtype=torch.float64), id="another dtype"),
        pytest.param(lambda: torch.empty(32, 64).T, id="not contiguous"),
    ],
)
def test_a_buffer_that_bytes_cannot_go_into_is_filled_by_a_copy(
    llamas: list[Path], out: Callable[[], torch.Tensor]
) -> None:
    checkpoint = Checkpoint.open(llamas[0])
    found = checkpoint.read(NAME, out=out())
    assert torch.equal(found, checkpoint.read(NAME).to(found.dtype))


def test_a_buffer_of_the_wrong_shape_is_an_error(llamas: list[Path]) -> None:
    with pytest.raises(ValueError, match="shape"):
        Checkpoint.open(llamas[0]).read(NAME, out=torch.empty(3, 3))


def test_raw_bytes_can_be_read_from_anywhere(llamas: list[Path]) -> None:
    raw = load_all(llamas[0])[NAME].numpy().tobytes()
    buffer = bytearray(101)
    Checkpoint.open(llamas[0]).read_into(NAME, memoryview(buffer), start=13)
    assert bytes(buffer) == raw[13:114]
    with pytest.raises(ValueError, match="were asked for"):
        Checkpoint.open(llamas[0]).read_into(NAME, memoryview(buffer), start=len(raw) - 100)


def test_chunks_are_the_tensor_in_order(llamas: list[Path]) -> None:
    raw = load_all(llamas[0])[NAME].numpy().tobytes()
    chunks = [bytes(chunk) for chunk in Checkpoint.open(llamas[0]).chunks(NAME, size=1000)]
    assert b"".join(chunks) == raw
    assert {len(chunk) for chunk in chunks[:-1]} == {1000}


def test_scalars_and_empty_tensors_can_be_read(tmp_path: Path) -> None:
    tensors = {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "hollow": torch.empty(4, 0)}
    checkpoint = Checkpoint.open(save_folder(tmp_path / "m", tensors))
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)
    assert checkpoint.read("empty", slice(0, 0)).shape == (0, 4)
    assert checkpoint.tensors["scalar"].rows == 1


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.int16,
        torch.uint16,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e8m0fnu,
    ],
)
def test_every_dtype_keeps_its_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(64, dtype=torch.uint8).remainder(2).view(dtype)
    found = Checkpoint.open(save_folder(tmp_path / "m", {"t": tensor})).read("t")
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_many_threads_read_the_same_as_one(llamas: list[Path]) -> None:
    expected = load_all(llamas[0])
    checkpoint = Checkpoint.open(llamas[0])
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(checkpoint.read, list(expected) * 20)
        assert all(map(torch.equal, found, list(expected.values()) * 20))


def test_an_unknown_tensor_is_named_with_the_nearest_one(llamas: list[Path]) -> None:
    with pytest.raises(TensorNotFound, match=r'did you mean "model\.norm\.weight"'):
        Checkpoint.open(llamas[0]).read("model.nrom.weight")


def test_a_file_that_changed_after_opening_is_noticed(llamas: list[Path], tmp_path: Path) -> None:
    shutil.copytree(llamas[0], tmp_path / "m")
    checkpoint = Checkpoint.open(tmp_path / "m")
    shutil.copy(llamas[1] / "model.safetensors", tmp_path / "m/new")
    os.replace(tmp_path / "m/new", tmp_path / "m/model.safetensors")
    with pytest.raises(CorruptCheckpoint, match="changed after it was opened"):
        checkpoint.read(NAME)


def test_a_file_cut_while_it_is_open_is_noticed(llamas: list[Path], tmp_path: Path) -> None:
    shutil.copytree(llamas[0], tmp_path / "m")
    checkpoint = Checkpoint.open(tmp_path / "m")
    first, *_, last = checkpoint.tensors
    checkpoint.read(first)
    os.truncate(tmp_path / "m/model.safetensors", 8000)
    with pytest.raises(CorruptCheckpoint, match="file ends at byte"):
        checkpoint.read(last)


def times_open(path: Path) -> int:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(descriptor.readlink())
    return links.count(path.resolve())


def test_files_are_closed_with_the_checkpoint(llamas: list[Path]) -> None:
    file = llamas[0] / "model.safetensors"
    checkpoint = Checkpoint.open(llamas[0])
    assert times_open(file) == 0
    checkpoint.read(NAME)
    assert times_open(file) == 1
    checkpoint.close()
    assert times_open(file) == 0
    checkpoint.read(NAME)
    del checkpoint
    gc.collect()
    assert times_open(file) == 0


def head_and_embedding(*, equal: bool) -> dict[str, torch.Tensor]:
    embedding = torch.randn(6, 4)
    head = embedding.clone() if equal else torch.randn(6, 4)
    return {"model.embed_tokens.weight": embedding, "lm_head.weight": head}


@pytest.mark.parametrize(
    ("config", "head", "tied"),
    [
        ({"tie_word_embeddings": True}, None, True),
        ({"tie_word_embeddings": True}, "equal", True),
        ({"tie_word_embeddings": True}, "different", False),
        ({"tie_word_embeddings": False}, "equal", False),
        ({"tie_word_embeddings": False}, None, False),
        ({"text_config": {"tie_word_embeddings": True}}, "equal", True),
        ({}, None, True),
        ({}, "equal", False),
    ],
)
def test_a_tied_head_is_told_by_config_and_values(
    tmp_path: Path, config: dict[str, Any], head: str | None, tied: bool
) -> None:
    tensors = head_and_embedding(equal=head == "equal")
    if head is None:
        del tensors["lm_head.weight"]
    assert Checkpoint.open(save_folder(tmp_path / "m", tensors, **config)).tied is tied
