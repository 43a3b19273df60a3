"""Killed at any moment, the same call goes on and gives the same bytes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelglue.calibrate.compute import compute_statistics
from modelglue.calibrate.parts import Parts, work_folder
from modelglue.errors import OutputExists, RunConflict

TEXTS = ["the sky is blue today", "two and two make four", "a rather longer document " * 4]
MOMENTS = ["step:1", "step:8", "record:2", "assemble", "remove"]
# About a layer at a time.
OPTIONS = {"fisher": {"memory": 60_000}, "gram": {"memory": 30_000, "batch_size": 2}}


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, llamas: list[Path]) -> Path:
    """A folder with what each kind of statistics left when it was killed at each moment."""
    root = tmp_path_factory.mktemp("killed")
    jobs: list[tuple[str, dict[str, Any]]] = [
        (moment, _arguments(llamas[0], root / f"{kind}-{moment.replace(':', '-')}", kind))
        for kind in OPTIONS
        for moment in MOMENTS
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(root / "jobs.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return root


def _arguments(model: Path, out: Path, kind: str) -> dict[str, Any]:
    return {"model": str(model), "texts": TEXTS, "out": str(out), "kind": kind, **OPTIONS[kind]}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    kind: str, killed: Path, tmp_path: Path, llamas: list[Path]
) -> None:
    steps: list[int] = []
    whole = compute_statistics(
        **_arguments(llamas[0], tmp_path / "undisturbed", kind),
        progress=lambda done, total: steps.append(total),
    )
    in_all = len(steps)
    assert steps == [in_all] * in_all
    taken: dict[str, int] = {}
    for moment in MOMENTS:
        out = killed / f"{kind}-{moment.replace(':', '-')}"
        assert work_folder(out).is_dir()
        assert out.exists() == (moment == "remove")
        steps.clear()
        compute_statistics(
            **_arguments(llamas[0], out, kind),
            progress=lambda done, total: steps.append(total),
        )
        taken[moment] = len(steps)
        assert _contents(out) == _contents(whole)
        assert not work_folder(out).exists()
    assert taken["step:1"] == in_all  # no group was finished
    assert 0 < taken["step:8"] < in_all
    assert 0 < taken["record:2"] < in_all
    assert taken["assemble"] == taken["remove"] == 0


def test_memory_may_change_between_two_tries(tmp_path: Path, llamas: list[Path]) -> None:
    """Who ran out of it must be able to go on with less."""
    arguments = _arguments(llamas[0], tmp_path / "out", "gram")
    whole = compute_statistics(**{**arguments, "out": tmp_path / "whole"})

    def stop(done: int, _total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_statistics(**arguments, progress=stop)
    compute_statistics(**{**arguments, "memory": 1})
    assert _contents(tmp_path / "out") == _contents(whole)


def test_other_inputs_do_not_go_on_with_it(tmp_path: Path, llamas: list[Path]) -> None:
    arguments = _arguments(llamas[0], tmp_path / "out", "fisher")

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_statistics(**arguments, progress=stop)
    others = {
        "model": {"model": llamas[1]},
        "texts": {"texts": [*TEXTS, "another"]},
        "token_ids": {"max_length": 8},
        "labels": {"labels": "text"},
        "seed": {"seed": 1},
        "kind": {"kind": "gram"},
        "dtype": {"dtype": "bfloat16"},
    }
    for name, other in others.items():
        with pytest.raises(RunConflict, match=rf"\(.*\b{name}\b.*differ\)"):
            compute_statistics(**{**arguments, **other})
    compute_statistics(**arguments)
    with pytest.raises(OutputExists):
        compute_statistics(**arguments)


def test_two_processes_do_not_share_parts(tmp_path: Path) -> None:
    asked = {"kind": "gram"}
    taken = pytest.raises(RunConflict, match="another process")
    with Parts(tmp_path / "out", asked), taken:
        Parts(tmp_path / "out", asked)
    with Parts(tmp_path / "out", asked) as parts:
        assert parts.tensors == {}
