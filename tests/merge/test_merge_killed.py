"""A merge killed at any moment leaves nothing that looks whole, and goes on where it stopped."""

import json
import subprocess
import sys
from pathlib import Path

import killed_merge
import pytest
from stopped_merges import (
    SETTINGS,
    assert_is_undisturbed,
    assert_nothing_looks_whole,
    config_of,
    run,
)

from modelglue.checkpoint import durable
from modelglue.merge.config.schema import parse_config
from modelglue.merge.plan.merge_plan import make_plan

MOMENTS = ["write:1", "write:20", "torn:30", "ctrl-c:35", "commit", "rename"]
MORE = {"linear": ["renamed"], "ties": ["read:30"], "dare_ties": []}
LATE = {"write:20", "torn:30", "ctrl-c:35", "commit"}


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
