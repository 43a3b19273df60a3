"""Evolution ends the same whoever evaluates, and however often it is killed."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import killed_evolution
import optuna
import pytest
from landscapes import BLOCKS, GOAL, Watch, answered, evolve, hill, near, objective, problem
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from modelglue.journal import Journal
from modelglue.search.executors import Evaluate, Job
from modelglue.search.executors.serial import Serial
from modelglue.search.executors.workers import processes
from modelglue.search.problem import (
    Dials,
    SearchResult,
    Trial,
)
from modelglue.search.sampler import Cloud, Sampler, stream
from modelglue.search.space import Space
from modelglue.search.trials import JournalledObjective

# The same whatever happens.


class Backwards:
    """An executor whose last job is done first."""

    workers = 4

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Trial]]:
        for index in reversed(range(len(jobs))):
            (found,) = Serial(evaluate).run([jobs[index]])
            yield index, found[1]

    def close(self) -> None:
        pass


def evaluate(coefficients: Any, block: int | None) -> Trial:
    trial = answered(noisy_hill)(coefficients)
    return (
        trial if block is None or trial.scores is None else Trial(BLOCKS.part(trial.scores, block))
    )


def noisy_hill(coefficients: Any) -> float:
    return (
        math.nan
        if coefficients.get("d", 0.0) > 0.5 and len(coefficients) > 1
        else hill(coefficients)
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "all items": {},
    "raced": {"racing": "on", "stages": 2},
    "estimated, from a heuristic": {"proxy": "irt", "warm_start": "greedy_soup"},
}


def run(journal: Path, executor: Any, watch: Watch, **options: Any) -> SearchResult:
    with Journal(journal) as opened:
        trying = JournalledObjective(executor, opened, scope="s", items=BLOCKS)
        return evolve(problem(GOAL, trying, seed=3, tell=watch), trials=40, **options)


def trials_in(journal: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    found = {json.dumps([r["coefficients"], r["block"]]): r for r in records}
    assert len(found) == len(records)
    return found


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_side_by_side_is_one_after_the_other(options: dict[str, Any], tmp_path: Path) -> None:
    serial, parallel = Watch(), Watch()
    expected = run(tmp_path / "serial", Serial(evaluate), serial, **options)
    assert run(tmp_path / "parallel", Backwards(), parallel, **options) == expected
    assert serial.calls == parallel.calls
    assert trials_in(tmp_path / "serial") == trials_in(tmp_path / "parallel")


def test_in_processes_beside_this_one_it_is_the_same(tmp_path: Path) -> None:
    serial, parallel = Watch(), Watch()
    expected = run(tmp_path / "serial", Serial(make()), serial, racing="on")
    with closing(processes(make, workers=2)) as executor:
        assert run(tmp_path / "parallel", executor, parallel, racing="on") == expected
    assert serial.calls == parallel.calls
    assert trials_in(tmp_path / "serial") == trials_in(tmp_path / "parallel")


def make() -> Evaluate:
    return evaluate


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_stopped_at_any_trial_it_goes_on_to_the_same_end(
    options: dict[str, Any], tmp_path: Path
) -> None:
    undisturbed = Watch()
    expected = run(tmp_path / "whole", Serial(evaluate), undisturbed, **options)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for stop in sorted(random.Random(0).sample(range(len(lines)), 5)):
        journal, watch = tmp_path / f"stopped-{stop}", Watch()
        journal.write_bytes(b"".join(lines[:stop]) + lines[stop][:20])
        assert run(journal, Serial(evaluate), watch, **options) == expected
        assert watch.calls == undisturbed.calls
        assert journal.read_bytes() == (tmp_path / "whole").read_bytes()


def test_another_seed_is_another_search_and_the_same_one_the_same() -> None:
    def tried(seed: int) -> list[Any]:
        watch = Watch()
        evolve(problem(GOAL, objective(near(GOAL)), seed=seed, tell=watch), trials=20)
        return watch.tried

    assert tried(1) == tried(1)
    assert tried(1)[:5] == tried(2)[:5]
    assert tried(1)[5:] != tried(2)[5:]


def test_members_have_streams_of_their_own() -> None:
    streams = [stream(s, g, m) for s in range(3) for g in range(10) for m in range(10)]
    assert len(set(streams)) == len(streams)
    assert stream(0, 1, 2) == 4052747781


def test_a_member_is_the_same_whoever_is_asked_for_beside_it() -> None:
    space = Space(tuple("abcd"), Dials())
    few = Sampler(Cloud(space.start, 0.2, space.bounds, 4), 0).ask(7)
    many = Sampler(Cloud(space.start, 0.2, space.bounds, 9), 0).ask(7)
    assert [point.tolist() for point in many[:4]] == [point.tolist() for point in few]


def kill_after(folder: Path, trials: int, seconds: float, *, mirrored: bool) -> None:
    """Run it, and kill it so many seconds after so many trials stand."""
    script = [sys.executable, killed_evolution.__file__, str(folder)]
    process = subprocess.Popen([*script, *(["mirrored"] if mirrored else [])])
    journal = folder / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < trials:
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def finished(folder: Path, *, mirrored: bool) -> tuple[Any, dict[str, Any]]:
    found = killed_evolution.evolve(folder, nap=0, mirrored=mirrored)
    return found, trials_in(folder / "journal.jsonl")


def kill_and_compare(tmp_path: Path, kills: int, *, mirrored: bool = False) -> None:
    draw = random.Random(kills)
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "killed").mkdir()
    expected = finished(tmp_path / "undisturbed", mirrored=mirrored)
    for trials in sorted(draw.sample(range(len(expected[1]) - 10), kills)):
        kill_after(tmp_path / "killed", trials, draw.uniform(0, 0.02), mirrored=mirrored)
    assert len(trials_in(tmp_path / "killed" / "journal.jsonl")) < len(expected[1])
    assert finished(tmp_path / "killed", mirrored=mirrored) == expected


def test_killed_three_times_it_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 3)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 20, mirrored=True)
    undisturbed, resumed = (
        optuna.load_study(
            study_name="evolution",
            storage=JournalStorage(JournalFileBackend(str(tmp_path / name / "study.log"))),
        ).trials
        for name in ("undisturbed", "killed")
    )
    assert [t.params for t in resumed] == [t.params for t in undisturbed]
    assert [t.user_attrs for t in resumed] == [t.user_attrs for t in undisturbed]
