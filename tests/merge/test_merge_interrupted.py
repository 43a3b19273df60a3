"""Killed, interrupted or short of disk at any moment: nothing that looks whole, and it goes on."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import killed_merge
import pytest
import token_models
import torch
from safetensors.torch import load_file, save_file

from modelglue.checkpoint import durable
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.errors import CheckpointNotFound, CorruptCheckpoint, OutOfSpace
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.stream import Merged, execute
from modelglue.merge.plan.merge_plan import make_plan

MOMENTS = ["write:1", "write:20", "torn:30", "ctrl-c:35", "commit", "rename"]
MORE = {"linear": ["renamed"], "ties": ["read:30"], "dare_ties": []}
LATE = {"write:20", "torn:30", "ctrl-c:35", "commit"}
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {},
    "ties": {"density": 0.5, "trim": "global"},
    "dare_ties": {"density": 0.5, "seed": 3},
}

Config = dict[str, Any]


def config_of(method: str, models: list[Path], **parameters: Any) -> Config:
    base, *others = models
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": [
            {"model": str(path), "parameters": {"weight": weight}}
            for path, weight in zip(others, (0.5, 0.2, 0.4))
        ],
        "parameters": {**SETTINGS.get(method, {}), **parameters},
    }


def run(config: Config, out: Path, **options: Any) -> Merged:
    return execute(make_plan(parse_config(config)), out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_is_undisturbed(out: Path, config: Config, **options: Any) -> None:
    """Every file is what a merge that nobody stopped writes; nothing lies beside it."""
    assert os.listdir(out.parent) == [out.name]
    fresh = out.parent / "undisturbed" / out.name
    found, expected = contents(out), contents(run(config, fresh, **options).path)
    shutil.rmtree(fresh.parent)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def assert_nothing_looks_whole(out: Path) -> None:
    assert not os.path.lexists(out)
    with pytest.raises(CheckpointNotFound):
        Checkpoint.open(out)
    assert all(name.startswith(".") for name in os.listdir(out.parent))


def settle() -> None:
    """Nothing goes on with files that were written a moment ago: they could change unnoticed."""
    time.sleep(0.06)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelglue.merge.chunk.CHUNK", killed_merge.CHUNK)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, llamas: list[Path]) -> Path:
    """Folders "method-moment" in which a merge of that method to "out" was killed."""
    root = tmp_path_factory.mktemp("killed")
    jobs = []
    for method in SETTINGS:
        for moment in [*MOMENTS, *MORE[method]]:
            folder = root / f"{method}-{moment}"
            folder.mkdir()
            jobs.append((moment, config_of(method, llamas), str(folder / "out")))
    (root / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, killed_merge.__file__, str(root / "jobs.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_merge_goes_on_where_it_stopped_and_writes_the_same_bytes(
    method: str, moment: str, killed: Path, llamas: list[Path]
) -> None:
    out = killed / f"{method}-{moment}" / "out"
    assert_nothing_looks_whole(out)
    (left,) = out.parent.iterdir()
    noted = (left / durable.FINISHED).read_text().split() if moment != "rename" else []
    config = config_of(method, llamas)
    merged = run(config, out)
    assert merged.resumed == len(noted)
    if moment in LATE:
        assert 0 < merged.resumed <= len(make_plan(parse_config(config)).tensors)
    assert_is_undisturbed(out, config)


def test_a_merge_killed_while_it_measures_goes_on(killed: Path, llamas: list[Path]) -> None:
    out = killed / "ties-read:30" / "out"
    assert_nothing_looks_whole(out)
    config = config_of("ties", llamas)
    assert run(config, out).resumed == 0
    assert_is_undisturbed(out, config)


def test_a_merge_killed_after_its_output_got_its_name_is_done(
    killed: Path, llamas: list[Path]
) -> None:
    assert_is_undisturbed(killed / "linear-renamed" / "out", config_of("linear", llamas))


def test_the_command_says_where_it_went_on(killed: Path, llamas: list[Path]) -> None:
    out = killed / "linear-write:20" / "command" / "out"
    config = config_of("linear", llamas)
    jobs = out.parent.parent / "jobs.json"
    jobs.write_text(json.dumps([("write:20", config, str(out))]))
    subprocess.run([sys.executable, killed_merge.__file__, str(jobs)], check=True)
    assert_nothing_looks_whole(out)
    asked = out.parent.parent / "merge.yaml"
    asked.write_text(json.dumps(config))
    command = [sys.executable, "-m", "modelglue.cli", "merge", str(asked), str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["resumed"] > 0
    assert_is_undisturbed(out, config)


# Another merge does not go on with it


Stop = Callable[[Config, Path], None]


@pytest.fixture
def stop_late(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Merges until most tensors are finished and noted, then stops as Ctrl-C does."""

    def stop(config: Config, out: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(CheckpointWriter, "commit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(config, out)
        assert_nothing_looks_whole(out)
        (left,) = out.parent.iterdir()
        assert (left / durable.FINISHED).read_text()

    return stop


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Change:
    """A configuration, and what becomes of it (or of what it names) between two tries."""

    before: Config
    after: Config
    act: Callable[[], None] = lambda: None


def change(name: str, folder: Path, llamas: list[Path]) -> Change:
    models = []
    for path in llamas[:3]:
        models.append(folder / path.name)
        shutil.copytree(path, models[-1])
    config = config_of("ties", models, density=0.5)
    match name:
        case "nothing":
            return Change(config, config)
        case "weight":
            other = json.loads(json.dumps(config))
            other["models"][1]["parameters"]["weight"] = 0.21
            return Change(config, other)
        case "method":
            config["parameters"] = {"density": 0.5, "normalize": True}
            return Change(config, {**config, "merge_method": "dare_ties"})
        case "dtype":
            return Change(config, {**config, "dtype": "float16"})
        case "order":
            return Change(config, {**config, "models": config["models"][::-1]})
        case "base":
            base, model, other = models
            again = config_of("ties", [model, base, other], density=0.5)
            return Change(config, again)
        case "input":

            def act() -> None:
                weights = models[1] / "model.safetensors"
                tensors = load_file(weights)
                for tensor in tensors.values():
                    tensor += 1
                save_file(tensors, weights, metadata={"format": "pt"})

            return Change(config, config, act)
        case "statistics":
            config = config_of("fisher", models)
            del config["base_model"]
            for i, entry in enumerate(config["models"]):
                tensors = load_file(Path(entry["model"]) / "model.safetensors")
                tensors = {key: tensor.abs() + i for key, tensor in tensors.items()}
                statistics = folder / f"statistics{i}"
                statistics.mkdir()
                save_file(tensors, statistics / "model.safetensors")
                (statistics / "config.json").write_text("{}")
                entry["parameters"]["statistics"] = str(statistics)
            other = json.loads(json.dumps(config))
            one, two = (entry["parameters"] for entry in other["models"])
            one["statistics"], two["statistics"] = two["statistics"], one["statistics"]
            return Change(config, other)
    raise ValueError(name)


CHANGES = ["weight", "method", "dtype", "order", "base", "input", "statistics"]


@pytest.mark.parametrize("name", ["nothing", *CHANGES])
def test_what_changed_between_two_tries_is_merged_anew(
    name: str, stop_late: Stop, llamas: list[Path], tmp_path: Path
) -> None:
    changed = change(name, tmp_path, llamas)
    out = tmp_path / "merged" / "out"
    settle()
    stop_late(changed.before, out)
    changed.act()
    settle()
    merged = run(changed.after, out)
    assert (merged.resumed > 0) == (name == "nothing")
    assert_is_undisturbed(out, changed.after)


def test_rows_that_shall_come_from_elsewhere_are_merged_anew(
    stop_late: Stop, tmp_path: Path
) -> None:
    base = token_models.save(tmp_path / "base", seed=0)
    chat = token_models.save(tmp_path / "chat", seed=1, added=["<x>"])

    def asked(kind: dict[str, Any]) -> Config:
        tokenizer = {"source": "union", "tokens": {"<x>": {"source": kind, "force": True}}}
        return {**config_of("task_arithmetic", [base, chat]), "tokenizer": tokenizer}

    first = asked({"kind": "zero"})
    second = asked({"kind": "model_token", "model": str(chat), "token_id": 7})
    out = tmp_path / "merged" / "out"
    settle()
    stop_late(first, out)
    assert run(second, out).resumed == 0
    assert_is_undisturbed(out, second)


def test_an_adapter_of_another_strength_is_merged_anew(
    stop_late: Stop, llamas: list[Path], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    matrices = {"A": torch.ones(2, 32), "B": torch.ones(32, 2)}
    weights = {f"{prefix}.lora_{name}.weight": matrix for name, matrix in matrices.items()}
    save_file(weights, adapter / "adapter_model.safetensors")
    config = {"merge_method": "linear", "models": [str(llamas[1]), f"{llamas[0]}+{adapter}"]}
    out = tmp_path / "merged" / "out"
    settle()
    stop_late(config, out)
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 6}))
    assert run(config, out).resumed == 0
    assert_is_undisturbed(out, config)


def test_numbers_of_another_device_are_not_mixed_in(
    stop_late: Stop, llamas: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "merged" / "out"
    config = config_of("model_stock", llamas)
    config["models"] = [entry["model"] for entry in config["models"]]
    stop_late(config, out)
    assert run(config, out, device="cpu").resumed == 0
    assert_is_undisturbed(out, config, device="cpu")


def test_threads_may_change_between_two_tries(
    stop_late: Stop, llamas: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "merged" / "out"
    config = config_of("ties", llamas)
    stop_late(config, out)
    assert run(config, out, threads=7).resumed > 0
    assert_is_undisturbed(out, config)


def test_no_file_of_another_merge_of_the_same_weights_stays(
    llamas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged" / "out"
    chatty = {**config_of("linear", llamas), "chat_template": "{{ messages }}"}
    with monkeypatch.context() as patch:
        # The moment before the note of finished tensors goes.
        patch.setattr(durable.Durable, "remove", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(chatty, out)
    (left,) = out.parent.iterdir()
    assert (left / "chat_template.jinja").exists()
    plain = config_of("linear", llamas)
    run(plain, out)
    assert_is_undisturbed(out, plain)


# What goes wrong on the way


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
