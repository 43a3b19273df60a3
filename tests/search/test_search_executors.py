"""Whoever evaluates, the result is the same; a worker that is lost changes nothing."""

import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import worker_samples
from worker_samples import BLOCKS, candidates, landscape, outcome, score

from modelglue.errors import ConfigError, RunError, TaskError
from modelglue.journal import Journal
from modelglue.search.executors import Job, executor, workers
from modelglue.search.executors.bench import Seat
from modelglue.search.executors.only import Only
from modelglue.search.executors.pool import Ready
from modelglue.search.executors.ray import actors
from modelglue.search.executors.serial import Serial
from modelglue.search.executors.workers import processes
from modelglue.search.problem import Trial
from modelglue.search.trials import JournalledObjective

HERE = Path(__file__).parent


@pytest.fixture
def undisturbed(tmp_path: Path) -> tuple[list[float], list[str]]:
    return outcome(Serial(score), tmp_path / "serial")


def test_a_search_ends_alike_whoever_evaluates(
    tmp_path: Path, undisturbed: tuple[list[float], list[str]]
) -> None:
    for count in (1, 3):
        made = processes(worker_samples.Steady(), workers=count)
        assert outcome(made, tmp_path / f"{count}") == undisturbed


def test_workers_killed_in_the_middle_of_a_trial_change_nothing(
    tmp_path: Path, undisturbed: tuple[list[float], list[str]]
) -> None:
    fatal = tuple(candidates(generation)[generation]["a"] for generation in range(3))
    factory = worker_samples.KilledOnce(tmp_path, fatal)
    assert outcome(processes(factory, workers=2), tmp_path / "j") == undisturbed
    assert len(list(tmp_path.glob("killed at *"))) == 3


def test_a_candidate_that_no_worker_survives_ends_the_run_and_is_no_trial(tmp_path: Path) -> None:
    asked = [{"a": a} for a in (0.1, 0.2, 0.3)]
    with (
        closing(processes(worker_samples.AlwaysKilled(tmp_path, 0.2), workers=1)) as made,
        Journal(tmp_path / "journal") as journal,
        pytest.raises(RunError, match=r"over one candidate \(a: 0.2\); the last one was killed"),
    ):
        JournalledObjective(made, journal, scope="s", items=BLOCKS).many(asked)
    assert (tmp_path / "deaths").read_text() == "xxx"
    # Where there is memory enough, it is asked again.
    with Journal(tmp_path / "journal") as journal:
        assert [record["coefficients"] for record in journal] == asked[:1]
        again = JournalledObjective(Serial(score), journal, scope="s", items=BLOCKS)
        assert again.many(asked) == [Trial(landscape(each)) for each in asked]
        assert again.evaluated == 2


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        ("ours", TaskError, "task t: item 3 is wrong"),
        ("many", ConfigError, "glue.yaml: 2 problems\n  - a: one\n  - b: two"),
        ("other", ZeroDivisionError, "by nothing"),
        ("unpicklable", RunError, "Unpicklable: holds a lock"),
        ("changed", RunError, "Changed: all is wrong"),
    ],
)
def test_an_error_in_a_worker_reaches_whoever_asked(
    error: str, expected: type[Exception], message: str
) -> None:
    with closing(processes(worker_samples.Raises(error, 0.2), workers=2)) as made:
        with pytest.raises(expected) as caught:
            list(made.run([Job({"a": a}) for a in (0.1, 0.2, 0.3)]))
        assert str(caught.value) == message
        assert "in evaluate" in caught.value.__notes__[0]  # where it came from
        # Nothing of what was under way is taken for what is asked now.
        assert dict(made.run([Job({"a": 0.5})])) == {0: Trial(landscape({"a": 0.5}))}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://localhost:1", "nonsense"])
def test_an_address_where_no_cluster_answers_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}: "):
        actors(worker_samples.Steady(), workers=1, address=address)


def test_what_cannot_be_built_is_told_as_it_is() -> None:
    with (
        closing(processes(worker_samples.CannotBeBuilt(), workers=2)) as made,
        pytest.raises(ConfigError, match="device: 'cuda' cannot be used"),
    ):
        list(made.run([Job({"a": 0.1})]))


def test_workers_that_never_stand_end_it_with_the_reason() -> None:
    with (
        closing(processes(worker_samples.Stillborn(), workers=2)) as made,
        pytest.raises(
            RunError, match="lost while they started; the last one was killed by SIGKILL"
        ),
    ):
        list(made.run([Job({"a": 0.1})]))


def test_workers_lost_between_two_calls_are_replaced(tmp_path: Path) -> None:
    with closing(processes(worker_samples.Tells(tmp_path), workers=2)) as made:
        expected = {i: score({"a": 0.1 * i}, None) for i in range(4)}
        jobs = [Job({"a": 0.1 * i}) for i in range(4)]
        assert dict(made.run(jobs)) == expected
        standing = pids(tmp_path)
        for pid in standing:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(lives, standing)))
        assert dict(made.run(jobs)) == expected


@pytest.mark.parametrize(("given", "threads"), [("", 3), ("2", 2), ("8", 3)])
def test_workers_share_the_cores(
    given: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    with closing(processes(worker_samples.Tells(tmp_path), workers=2)) as made:
        list(made.run([Job({"a": 0.1}), Job({"a": 0.2})]))
        wait_until(lambda: len(pids(tmp_path)) == 2)
    told = {path.read_text() for path in tmp_path.glob("*[0-9]")}
    assert told == {f"{index} {threads} {threads}" for index in (0, 1)}


def test_no_more_workers_start_than_there_are_jobs(tmp_path: Path) -> None:
    with closing(processes(worker_samples.Tells(tmp_path), workers=50)) as made:
        assert made.workers == 50
        list(made.run([Job({"a": 0.1})]))
    assert len(pids(tmp_path)) == 1


def test_whoever_stops_listening_stops_what_is_under_way_and_can_ask_again(
    tmp_path: Path,
) -> None:
    factory = worker_samples.Tells(tmp_path, endless=(0.2,))
    with closing(processes(factory, workers=2)) as made:
        heard = made.run([Job({"a": 0.1}), Job({"a": 0.2}), Job({"a": 0.3})])
        both = dict([next(heard), next(heard)])
        assert both == {0: score({"a": 0.1}, None), 2: score({"a": 0.3}, None)}
        wait_until(lambda: "0.2" in busy(tmp_path))
        heard.close()
        assert not lives(int(busy(tmp_path)["0.2"]))
        jobs = [Job({"a": 0.7}, 0), Job({"a": 0.8}, 1)]
        assert dict(made.run(jobs)) == {0: score({"a": 0.7}, 0), 1: score({"a": 0.8}, 1)}


def test_ctrl_c_passes_a_worker_by_from_its_first_moment_on(tmp_path: Path) -> None:
    process = workers.Process(pickle.dumps(worker_samples.Tells(tmp_path)), Seat())
    (pid,) = [child.pid for child in multiprocessing.active_children()]
    heeds, looks = False, 0
    while not pids(tmp_path):
        status = Path(f"/proc/{pid}/status").read_text()
        masks = re.findall(r"Sig(?:Blk|Ign):\s*([0-9a-f]+)", status)
        heeds |= not any(int(mask, 16) >> (signal.SIGINT - 1) & 1 for mask in masks)
        looks += 1
    os.kill(pid or 0, signal.SIGINT)
    assert process.answer() == Ready()
    process.begin(Job({"a": 0.1}))
    assert process.answer() == score({"a": 0.1}, None)
    process.end()
    assert not heeds
    assert looks > 1


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_whoever_started_them(tmp_path: Path, ended_by: signal.Signals) -> None:
    paths = [str(HERE), *sys.path]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "interrupted.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.busy"))) == 2)
        workers = pids(tmp_path)
        if ended_by == signal.SIGINT:  # as a terminal does: to everyone
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.kill()
        _, said = process.communicate(timeout=20)
        wait_until(lambda: not any(map(lives, workers)))
    finally:
        with_children_ended(process)
    assert process.returncode == -ended_by
    assert said.count("Traceback") == (ended_by == signal.SIGINT)  # the workers say nothing


def test_a_search_that_is_killed_repeats_at_most_what_was_under_way(
    tmp_path: Path, undisturbed: tuple[list[float], list[str]]
) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, str(HERE / "killed_search.py"), str(tmp_path)]
    journal, kills = tmp_path / "journal", 4
    unique = len(undisturbed[1])
    for kill in range(1, kills + 1):
        process = subprocess.Popen(command, env=env)
        wait_until(partial(holds, journal, kill * unique // (kills + 1)))
        process.kill()
        process.wait()
    assert json.loads(subprocess.check_output(command, env=env)) == undisturbed[0]
    assert sorted(journal.read_text().splitlines()) == undisturbed[1]
    begun = (tmp_path / "begun").read_text().count("\n")
    assert unique <= begun <= unique + 2 * kills


def test_a_factory_is_called_once_and_only_when_there_is_something_to_do() -> None:
    built = []

    def factory() -> worker_samples.Evaluate:
        built.append(1)
        return score

    with closing(executor("serial", factory)) as made:
        assert built == []
        list(made.run([Job({"a": 0.1}), Job({"a": 0.2}, 1)]))
        assert list(made.run([Job({"a": 0.3}, 2)])) == [(0, score({"a": 0.3}, 2))]
    assert built == [1]


def test_one_part_of_the_items_can_be_all_that_someone_asks_for() -> None:
    asked: list[tuple[Mapping[str, float], int | None]] = []

    def evaluate(coefficients: Mapping[str, float], block: int | None) -> Trial:
        asked.append((coefficients, block))
        return score(coefficients, 0)

    trials = JournalledObjective(Only(Serial(evaluate), -1), None, scope="accept", items=(8,))
    trials({"a": 1.0})
    assert asked == [({"a": 1.0}, -1)]


def test_without_ray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'modelglue\[ray\]'"):
        executor("ray", worker_samples.Steady())


def pids(folder: Path) -> list[int]:
    """The processes that told of themselves."""
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def busy(folder: Path) -> dict[str, str]:
    """The candidate that a process began last → the process."""
    return {path.read_text(): path.stem for path in folder.glob("*.busy")}


def lives(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"  # ended, though nobody has asked


def holds(journal: Path, lines: int) -> bool:
    return journal.exists() and journal.read_bytes().count(b"\n") >= lines


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def with_children_ended(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stderr is not None:
        process.stderr.close()
