import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.spec import nbytes_of
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.errors import CheckpointNotFound, OutOfSpace, OutputExists, UnsupportedCheckpoint

LAYOUT = {"a": ("F32", (6, 4)), "b": ("BF16", (3,)), "c": ("F32", ()), "d": ("F32", (0, 2))}
WRITER = Path(__file__).with_name("endless_writer.py")


def layout_of(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (spec.dtype, spec.shape) for name, spec in checkpoint.tensors.items()}


def write_all(writer: CheckpointWriter) -> None:
    writer.write("a", torch.arange(24.0).reshape(6, 4))
    writer.write("b", torch.ones(3, dtype=torch.bfloat16))
    writer.write("c", torch.tensor(7.0))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000, 1])
def test_a_copy_loads_in_transformers_and_is_equal(
    make_model: Callable[..., Path], tmp_path: Path, max_shard_bytes: int
) -> None:
    source = Checkpoint.open(make_model(tmp_path / "source", num_hidden_layers=2))
    out = tmp_path / "copy"
    with CheckpointWriter(out, layout_of(source), max_shard_bytes=max_shard_bytes) as writer:
        for name in source.tensors:
            writer.write(name, source.read(name))
        assert writer.commit(config=source.config, files_from=source.path) == out
    copy = Checkpoint.open(out)
    assert copy.fingerprint() == source.fingerprint()
    AutoTokenizer.from_pretrained(out)
    live = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(live[name], source.read(name)) for name in source.tensors)
    for file in out.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_shards_are_planned_as_transformers_plans_them(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    theirs = make_model(tmp_path / "theirs", max_shard_size="40KB", num_hidden_layers=3)
    index = "model.safetensors.index.json"
    order = AutoModelForCausalLM.from_pretrained(theirs).state_dict()
    source = Checkpoint.open(theirs)
    layout = {name: layout_of(source)[name] for name in order}
    with CheckpointWriter(tmp_path / "ours", layout, max_shard_bytes=40_000) as writer:
        for name in order:
            writer.write(name, source.read(name))
        writer.commit(config=source.config)
    assert json.loads((tmp_path / "ours" / index).read_text()) == json.loads(
        (theirs / index).read_text()
    )


def test_rows_may_come_in_any_order_from_many_threads(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(50 + i, 3) for i in range(20)}
    pieces = [(name, row) for name, tensor in tensors.items() for row in range(0, len(tensor), 7)]
    Random(0).shuffle(pieces)
    layout = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    with CheckpointWriter(tmp_path / "out", layout, max_shard_bytes=4000) as writer:

        def write(piece: tuple[str, int]) -> None:
            name, row = piece
            writer.write(name, tensors[name][row : row + 7], start_row=row)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, pieces))
        writer.commit(config={})
    found = Checkpoint.open(tmp_path / "out")
    assert all(torch.equal(found.read(name), tensor) for name, tensor in tensors.items())


def test_what_is_not_contiguous_is_written_as_it_is_indexed(tmp_path: Path) -> None:
    tensor = torch.randn(4, 6).T
    with CheckpointWriter(tmp_path / "out", {"t": ("F32", (6, 4))}) as writer:
        writer.write("t", tensor)
        writer.commit(config={})
    assert torch.equal(Checkpoint.open(tmp_path / "out").read("t"), tensor)


def test_a_missing_row_keeps_the_checkpoint_from_being_committed(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", LAYOUT) as writer:
        write_all(writer)
    with CheckpointWriter(tmp_path / "out", LAYOUT) as writer:
        writer.write("a", torch.ones(2, 4))
        writer.write("a", torch.ones(3, 4), start_row=3)
        writer.write("b", torch.ones(3, dtype=torch.bfloat16))
        with pytest.raises(ValueError, match="a was not written from byte 32 to 48, and 1 more"):
            writer.commit(config={})
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_behind_by_an_exception(tmp_path: Path) -> None:
    def interrupted() -> None:
        with CheckpointWriter(tmp_path / "new/parents/out", LAYOUT) as writer:
            write_all(writer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_an_output_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists, match="out is there already"):
        CheckpointWriter(tmp_path / "out", LAYOUT).__enter__()
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_made_meanwhile_by_another_is_not_touched(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", LAYOUT) as writer:
        write_all(writer)
        (tmp_path / "out").mkdir()
        with pytest.raises(OutputExists):
            writer.commit(config={})
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []


def test_a_disk_too_small_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    layout = {"huge": ("F32", (1 << 40, 1 << 10))}
    with pytest.raises(OutOfSpace, match=r"4,503,599,627,374,592 bytes"):
        CheckpointWriter(tmp_path / "out", layout).__enter__()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "fsync"])
def test_a_disk_that_fills_up_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with CheckpointWriter(tmp_path / "out", {"a": ("F32", (4,))}) as writer:
            writer.write("a", torch.ones(4))
            writer.commit(config={})

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutOfSpace, match="disk is full"):
        write()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "tensor", "row", "words"),
    [
        ("a", torch.ones(6, 4, dtype=torch.float16), 0, "F16 was given"),
        ("a", torch.ones(6, 5), 0, "do not fit"),
        ("a", torch.ones(24), 0, "do not fit"),
        ("a", torch.ones(3, 4), 4, "lie outside"),
        ("a", torch.ones(3, 4), -1, "lie outside"),
        ("z", torch.ones(3), 0, "not in the layout"),
    ],
)
def test_what_does_not_fit_the_layout_is_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor, row: int, words: str
) -> None:
    with (
        CheckpointWriter(tmp_path / "out", LAYOUT) as writer,
        pytest.raises(ValueError, match=words),
    ):
        writer.write(name, tensor, start_row=row)


def test_an_unknown_dtype_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match='"BF16"'):
        CheckpointWriter(tmp_path / "out", {"a": ("BF61", (2,))})


def test_a_finished_writer_takes_nothing_more(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", {"a": ("F32", (2,))}) as writer:
        writer.write("a", torch.ones(2))
        writer.commit(config={})
        with pytest.raises(ValueError, match="not open"):
            writer.write("a", torch.zeros(2))
        with pytest.raises(ValueError, match="not open"):
            writer.commit(config={})
    assert torch.equal(Checkpoint.open(tmp_path / "out").read("a"), torch.ones(2))


def test_every_tensor_is_aligned_to_its_elements(tmp_path: Path) -> None:
    layout = {"a": ("U8", (3,)), "b": ("F64", (2,)), "c": ("BF16", (1,)), "d": ("F32", (1,))}
    with CheckpointWriter(tmp_path / "out", layout) as writer:
        for name, (dtype, shape) in layout.items():
            writer.write_bytes(name, bytes(nbytes_of(dtype, shape)))
        writer.commit(config={})
    tensors = Checkpoint.open(tmp_path / "out").tensors
    assert [tensors[name].offset % size for name, size in (("b", 8), ("c", 2), ("d", 4))] == [0] * 3


def test_companions_card_and_extra_files_are_written(llamas: list[Path], tmp_path: Path) -> None:
    shutil.copytree(llamas[0], tmp_path / "in")
    (tmp_path / "in/chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "in/additional_chat_templates").mkdir()
    (tmp_path / "in/additional_chat_templates/tool.jinja").write_text("tool")
    (tmp_path / "in/optimizer.pt").write_text("not this")
    with CheckpointWriter(tmp_path / "out", {"a": ("F32", (2,))}) as writer:
        writer.write("a", torch.ones(2))
        writer.commit(
            config={"model_type": "llama"},
            files_from=tmp_path / "in",
            card="# card",
            extra={"generation_config.json": "{}", "notes/deep.bin": b"\0"},
        )
    out = tmp_path / "out"
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {
        "README.md",
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "notes/deep.bin",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (out / "generation_config.json").read_text() == "{}"


@pytest.fixture
def endless_writers(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, str(WRITER), str(tmp_path / "out")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def assert_is_whole(checkpoint: Checkpoint) -> None:
    assert len(checkpoint.tensors) == 40
    for i, name in enumerate(sorted(checkpoint.tensors)):
        assert torch.equal(checkpoint.read(name), torch.full((64, 64), float(i)))


def test_a_writer_killed_at_any_moment_leaves_no_output_that_looks_complete(
    tmp_path: Path, endless_writers: Callable[[], subprocess.Popen[bytes]]
) -> None:
    moments = Random(3)
    seen = set()
    for _ in range(12):
        child = endless_writers()
        time.sleep(moments.uniform(0, 0.06))
        child.kill()
        child.wait()
        # A hidden folder may be whole as well, if the kill came right before its renaming.
        for folder in (tmp_path / "out", *tmp_path.glob(".out.*")):
            try:
                with Checkpoint.open(folder) as whole:
                    assert_is_whole(whole)
                seen.add("whole")
            except CheckpointNotFound:
                seen.add("nothing")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert "nothing" in seen
    with CheckpointWriter(tmp_path / "out", {"a": ("F32", (1,))}):
        pass
    assert os.listdir(tmp_path) == []


def test_the_rest_of_a_killed_writer_is_removed_by_the_next_for_the_same_target(
    tmp_path: Path, endless_writers: Callable[[], subprocess.Popen[bytes]]
) -> None:
    child = endless_writers()
    child.kill()
    child.wait()
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    with CheckpointWriter(tmp_path / "another", {"a": ("F32", (1,))}):
        assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    with CheckpointWriter(tmp_path / "out", {"a": ("F32", (1,))}):
        assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    assert os.listdir(tmp_path) == []


def test_a_writer_at_work_is_not_disturbed_by_another_for_the_same_target(tmp_path: Path) -> None:
    layout = {"a": ("F32", (2,))}
    with CheckpointWriter(tmp_path / "out", layout) as first:
        first.write("a", torch.ones(2))
        with CheckpointWriter(tmp_path / "out", layout) as second:
            second.write("a", torch.zeros(2))
        first.commit(config={})
    assert torch.equal(Checkpoint.open(tmp_path / "out").read("a"), torch.ones(2))
    assert os.listdir(tmp_path) == ["out"]
