import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import CheckpointError, CheckpointNotFound, CorruptCheckpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    return make_model(tmp_path / "m", max_shard_size="40KB", num_hidden_layers=2)


@pytest.fixture
def single(llamas: list[Path], tmp_path: Path) -> Path:
    return shutil.copytree(llamas[0], tmp_path / "m")


def edit_index(folder: Path, **changes: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    for name, shard in changes.items():
        if shard is None:
            del index["weight_map"][name]
        else:
            index["weight_map"][name] = shard
    (folder / INDEX).write_text(json.dumps(index))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    return str(caught.value)


def test_a_missing_shard_is_named_with_a_tensor_that_is_in_it(sharded: Path) -> None:
    (sharded / "model-00002-of-00004.safetensors").unlink()
    message = refusal(sharded)
    assert "model-00002-of-00004.safetensors" in message
    assert "model." in message
    assert "missing" in message


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/passwd", "a/../../x", "", "..", "a\0b"]
)
def test_an_index_that_points_outside_of_the_folder_is_refused(sharded: Path, shard: str) -> None:
    (sharded.parent / "x.safetensors").write_bytes(b"")
    edit_index(sharded, **{"model.norm.weight": shard})
    message = refusal(sharded)
    assert "model.norm.weight points outside" in message


def test_a_tensor_of_the_index_that_is_in_no_shard_is_named(sharded: Path) -> None:
    edit_index(sharded, **{"model.ghost.weight": "model-00001-of-00004.safetensors"})
    assert "model.ghost.weight is not in model-00001-of-00004.safetensors" in refusal(sharded)


def test_a_tensor_of_a_shard_that_is_not_in_the_index_is_named(sharded: Path) -> None:
    edit_index(sharded, **{"model.norm.weight": None})
    assert "holds model.norm.weight, which the index does not place there" in refusal(sharded)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": 3}']
)
def test_a_broken_index_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    assert INDEX in refusal(sharded)


def test_a_shard_that_is_a_folder_or_a_pipe_is_refused(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00004.safetensors"
    shard.unlink()
    shard.mkdir()
    assert "not a file" in refusal(sharded)
    shard.rmdir()
    os.mkfifo(shard)
    assert "not a file" in refusal(sharded)


def test_a_weight_file_that_is_a_pipe_does_not_make_us_wait(single: Path) -> None:
    (single / "model.safetensors").unlink()
    os.mkfifo(single / "model.safetensors")
    assert "not a regular file" in refusal(single)


def test_shards_without_their_index_are_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert "no index" in refusal(sharded)


def test_a_missing_config_is_named(single: Path) -> None:
    (single / "config.json").unlink()
    assert "config.json is missing beside the weights" in refusal(single)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": 1, "a": 2}', "\x80"])
def test_a_broken_config_is_refused(single: Path, text: str) -> None:
    (single / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptCheckpoint, match=r"config\.json"):
        Checkpoint.open(single)


def test_weights_without_a_tensor_are_refused(single: Path) -> None:
    (single / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert "no tensor" in refusal(single)


def test_a_folder_without_weights_is_no_model(single: Path) -> None:
    (single / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFound, match="no weights"):
        Checkpoint.open(single)


def test_weights_in_a_format_that_is_not_read_are_named(single: Path) -> None:
    os.rename(single / "model.safetensors", single / "model.gguf")
    assert "It has model.gguf, which is not read" in refusal(single)


def test_a_folder_of_models_is_no_model_and_its_models_are_named(single: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="It contains models, though: m"):
        Checkpoint.open(single.parent)


def test_a_file_is_no_model(single: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="Give the folder"):
        Checkpoint.open(single / "model.safetensors")


def test_a_typo_is_answered_with_the_nearest_folder(single: Path) -> None:
    os.rename(single, single.parent / "mistral-math")
    with pytest.raises(CheckpointNotFound, match=r'did you mean ".*/mistral-math"'):
        Checkpoint.open(single.parent / "mistral-maht")


@pytest.mark.parametrize("name", ["a\0b", "\udc80", "x" * 5000])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint.open(tmp_path / name)
