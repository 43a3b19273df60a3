"""`.bin` files against what torch itself reads from them."""

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modelglue.checkpoint.pickled import read_pickled
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import CheckpointError, CorruptCheckpoint, UnsupportedCheckpoint

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(8, 6, generator=generator)
    found: dict[str, torch.Tensor] = {
        "plain": whole,
        "rows": whole[2:5],
        "transposed": whole.T,
        "column": whole[:, 1],
        "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
    }
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8):
        found[str(dtype)] = torch.arange(5).to(dtype)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16):
        found[str(dtype)] = torch.arange(4).to(dtype)
    found["bool"] = torch.tensor([True, False])
    return found


def save(folder: Path, state: Any, *, zipped: bool = True, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped, **settings)
    return folder


@FORMS
def test_every_tensor_equals_what_was_saved(tmp_path: Path, zipped: bool) -> None:
    checkpoint = Checkpoint.open(save(tmp_path / "m", tensors(), zipped=zipped))
    assert checkpoint.tensors.keys() == tensors().keys()
    for name, tensor in tensors().items():
        found = checkpoint.read(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.double(), tensor.detach().double()), name


@FORMS
def test_rows_can_be_read_whatever_the_strides(tmp_path: Path, zipped: bool) -> None:
    checkpoint = Checkpoint.open(save(tmp_path / "m", tensors(), zipped=zipped))
    for name in ("plain", "rows", "transposed"):
        assert torch.equal(checkpoint.read(name, slice(1, 3)), tensors()[name][1:3])


def test_the_order_of_a_module_is_kept(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3)).state_dict()
    assert isinstance(state, OrderedDict)
    checkpoint = Checkpoint.open(save(tmp_path / "m", state))
    assert list(checkpoint.tensors) == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_newer_pickle_protocols_are_read(tmp_path: Path, protocol: int) -> None:
    folder = save(tmp_path / "m", {"a": torch.arange(3.0)}, pickle_protocol=protocol)
    assert torch.equal(Checkpoint.open(folder).read("a"), torch.arange(3.0))


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", {"a": torch.ones(2)})
    (folder / "pytorch_model.bin").rename(folder / "one.bin")
    save(folder, {"b": torch.zeros(3)})
    (folder / "pytorch_model.bin").rename(folder / "two.bin")
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    checkpoint = Checkpoint.open(folder)
    assert torch.equal(checkpoint.read("a"), torch.ones(2))
    assert torch.equal(checkpoint.read("b"), torch.zeros(3))


def test_a_model_and_its_bin_are_the_same(llamas: list[Path], tmp_path: Path) -> None:
    original = Checkpoint.open(llamas[0])
    state = {name: original.read(name) for name in original.tensors}
    folder = save(tmp_path / "m", state)
    (folder / "config.json").write_bytes((llamas[0] / "config.json").read_bytes())
    assert Checkpoint.open(folder).fingerprint() == original.fingerprint()


class Touch:
    """Its pickle creates a file wherever it is loaded by the pickle module."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@FORMS
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    victim = tmp_path / "victim"
    folder = save(tmp_path / "m", {"a": torch.ones(2), "b": Touch(victim)}, zipped=zipped)
    with pytest.raises(UnsupportedCheckpoint, match=r"Pickled code is never run"):
        Checkpoint.open(folder)
    assert not victim.exists()


@pytest.mark.parametrize(
    "state",
    [
        pytest.param([torch.ones(2)], id="a list"),
        pytest.param({"epoch": 3, "a": torch.ones(2)}, id="a number among tensors"),
        pytest.param({"model": {"a": torch.ones(2)}}, id="nested"),
        pytest.param(torch.nn.Linear(2, 2), id="a module"),
        pytest.param({"a": torch.ones(2).to_sparse()}, id="sparse"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, state: Any) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"pytorch_model\.bin"):
        Checkpoint.open(save(tmp_path / "m", state))


def test_an_expanded_tensor_cannot_ask_for_more_memory_than_its_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", {"a": torch.ones(1).expand(1 << 40)})
    with pytest.raises(CorruptCheckpoint, match="beyond its storage"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x96" + (1 << 62).to_bytes(8, "little"), id="BYTEARRAY8"),
        pytest.param(b"\x8d" + (1 << 62).to_bytes(8, "little"), id="BINUNICODE8"),
        pytest.param(b"X" + (0xFFFFFFFF).to_bytes(4, "little"), id="BINUNICODE"),
        pytest.param(b"}r" + (0xFFFFFFFF).to_bytes(4, "little") + b".", id="LONG_BINPUT"),
        pytest.param(b"\x8b" + (0x7FFFFFFF).to_bytes(4, "little"), id="LONG4"),
        pytest.param(b"2" * 100, id="DUP of nothing"),
        pytest.param(b"\x82\x01.", id="EXT1"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_hostile_pickle_is_refused(tmp_path: Path, body: bytes) -> None:
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    legacy += pickle.dumps({"little_endian": True}, 2)
    path = tmp_path / "f.bin"
    path.write_bytes(legacy + b"\x80\x02" + body)
    with pytest.raises(CheckpointError, match=r"f\.bin"):
        read_pickled(path)


def test_tuples_doubled_forty_times_do_not_make_us_wait(tmp_path: Path) -> None:
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    legacy += pickle.dumps({"little_endian": True}, 2)
    doubling = b"q\x00h\x00\x86" * 40
    path = tmp_path / "f.bin"
    path.write_bytes(legacy + b"\x80\x02})" + doubling + b"Nss.")
    with pytest.raises(CheckpointError):
        read_pickled(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(UnsupportedCheckpoint, match=r"no file of torch\.save"):
        read_pickled(tmp_path / "f.bin")
