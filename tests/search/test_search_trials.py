"""Trials are written down at once and never made twice."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.journal import Journal
from modelglue.search.blocks import cut
from modelglue.search.executors import Job
from modelglue.search.executors.serial import Serial
from modelglue.search.problem import Problem, Trial, search
from modelglue.search.trials import JournalledObjective, in_memory

ITEMS = {"t": [f"t{i}" for i in range(8)], "u": [f"u{i}" for i in range(7)]}
BLOCKS = cut({task: {item: item for item in ids} for task, ids in ITEMS.items()}, 3)


def landscape(coefficients: Mapping[str, float]) -> Scores:
    near = 1 - abs(coefficients.get("b", 0.0) - 0.4) - coefficients.get("c", 0.0)
    return Scores(
        tuple(
            TaskScores(
                task,
                tuple(ids),
                tuple(near / (1 + i) for i in range(len(ids))),
                groups=tuple(f"group of {item}" for item in ids),
                metrics={"other": tuple(float(i) for i in range(len(ids)))},
            )
            for task, ids in ITEMS.items()
        )
    )


@dataclass
class Worker:
    """Scores candidates, and remembers what it was asked for.

    Attributes:
        fail_after: jobs until it is interrupted.
        fails: candidates that cannot be scored on a block.
    """

    fail_after: int = 10**9
    fails: tuple[tuple[str, int], ...] = ()
    asked: list[tuple[dict[str, float], int | None]] = field(default_factory=list)

    def __call__(self, coefficients: Mapping[str, float], block: int | None) -> Trial:
        if len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked.append((dict(coefficients), block))
        for name, bad in self.fails:
            if name in coefficients and block in (None, bad):
                return Trial(None, f"{name} holds NaN")
        scores = landscape(coefficients)
        return Trial(scores if block is None else BLOCKS.part(scores, block))


def objective(worker: Worker, journal: Journal | None, **options: object) -> JournalledObjective:
    given = {"scope": "s", "items": BLOCKS, **options}
    return JournalledObjective(Serial(worker), journal, **given)


def run(journal: Path, worker: Worker) -> object:
    with Journal(journal) as opened:
        problem = Problem(("a", "b", "c"), objective(worker, opened), lambda c, name: 0.0)
        return search("heuristic_coefficient", problem)


def test_no_candidate_is_evaluated_twice_by_several_strategies(tmp_path: Path) -> None:
    worker = Worker()
    with Journal(tmp_path / "j") as journal:
        trials = objective(worker, journal)
        for strategy in ("heuristic_average", "heuristic_coefficient", "heuristic_average"):
            search(strategy, Problem(("a", "b", "c"), trials, lambda c, name: 0.0))
    keys = [json.dumps(asked) for asked in worker.asked]
    assert len(keys) == len(set(keys)) == len(trials) == trials.evaluated


def test_a_search_stopped_anywhere_goes_on_to_the_same_end(tmp_path: Path) -> None:
    undisturbed = Worker()
    expected = run(tmp_path / "whole", undisturbed)
    for stop in range(len(undisturbed.asked)):
        first, second = Worker(fail_after=stop), Worker()
        journal = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(journal, first)
        assert run(journal, second) == expected
        assert first.asked + second.asked == undisturbed.asked
        assert journal.read_bytes() == (tmp_path / "whole").read_bytes()


def test_trials_of_an_earlier_scope_serve_at_the_tasks_that_are_asked_for(tmp_path: Path) -> None:
    later = Worker()
    with Journal(tmp_path / "j") as journal:
        objective(Worker(), journal, scope="all")({"a": 1.0})
        objective(Worker(), journal, scope="all").many([{"b": 1.0}], 2)
        (ids,) = [ids for task, ids in BLOCKS.places.items() if task == "u"]
        narrowed = objective(
            later, journal, scope="some", earlier=("all",), items=type(BLOCKS)({"u": ids})
        )
        assert narrowed({"a": 1.0}).scores == Scores((landscape({"a": 1.0})["u"],))
        (part,) = narrowed.many([{"b": 1.0}], 2)
        assert part.scores == Scores((BLOCKS.part(landscape({"b": 1.0}), 2)["u"],))
    assert later.asked == []


def test_an_earlier_scope_without_one_of_the_tasks_does_not_serve(tmp_path: Path) -> None:
    def at_t_alone(coefficients: Mapping[str, float], block: int | None) -> Trial:
        return Trial(Scores((landscape(coefficients)["t"],)))

    later = Worker()
    with Journal(tmp_path / "j") as journal:
        JournalledObjective(Serial(at_t_alone), journal, scope="less", items=(8,))({"a": 1.0})
        objective(later, journal, earlier=("less",))({"a": 1.0})
    assert later.asked == [({"a": 1.0}, None)]


def test_trials_of_another_scope_do_not_count(tmp_path: Path) -> None:
    first, second = Worker(), Worker()
    with Journal(tmp_path / "j") as journal:
        objective(first, journal, scope="family 0")({"a": 1.0})
        objective(second, journal, scope="family 1")({"a": 1.0})
    assert len(first.asked) == len(second.asked) == 1


def test_a_journal_of_a_version_that_knew_no_blocks_is_understood(tmp_path: Path) -> None:
    scores = landscape({"a": 0.5, "b": 0.5})
    worker = Worker()
    with Journal(tmp_path / "j") as journal:
        journal.append(
            {
                "event": "trial",
                "scope": "s",
                "coefficients": {"a": 0.5, "b": 0.5},
                "mean": scores.mean,
                "scores": scores.to_json(),
            }
        )
        trials = objective(worker, journal)
        assert trials({"b": 0.5, "a": 0.5}).scores == scores
        assert trials.many([{"a": 0.5, "b": 0.5}], 1)[0].scores == BLOCKS.part(scores, 1)
    assert worker.asked == []


def test_a_candidate_whose_blocks_all_stand_is_known_in_full() -> None:
    worker = Worker()
    trials = objective(worker, None)
    for block in (2, 0, 1):
        trials.many([{"a": 0.25, "b": 0.75}], block)
    assert trials({"a": 0.25, "b": 0.75}).scores == landscape({"a": 0.25, "b": 0.75})
    assert [block for _, block in worker.asked] == [2, 0, 1]


def test_only_the_blocks_that_are_missing_are_evaluated() -> None:
    worker = Worker()
    trials = objective(worker, None)
    trials.many([{"a": 1.0}, {"b": 1.0}], 1)
    full = trials.many([{"a": 1.0}, {"c": 1.0}])
    assert [trial.scores for trial in full] == [landscape({"a": 1.0}), landscape({"c": 1.0})]
    assert worker.asked[2:] == [({"a": 1.0}, 0), ({"a": 1.0}, 2), ({"c": 1.0}, None)]


def test_a_candidate_known_in_full_is_known_on_every_block() -> None:
    worker = Worker()
    trials = objective(worker, None)
    trials({"b": 1.0})
    for block in range(3):
        (part,) = trials.many([{"b": 1.0}], block)
        assert part.scores == BLOCKS.part(landscape({"b": 1.0}), block)
    assert len(worker.asked) == 1


def test_blocks_of_another_cut_are_evaluated_again(tmp_path: Path) -> None:
    other = cut({task: {item: item for item in ids} for task, ids in ITEMS.items()}, 2)
    worker = Worker()
    with Journal(tmp_path / "j") as journal:
        objective(Worker(), journal).many([{"a": 1.0}], 0)
        objective(worker, journal, items=other).many([{"a": 1.0}], 0)
    assert len(worker.asked) == 1


def test_a_failed_trial_is_written_down_with_its_reason_and_never_made_again(
    tmp_path: Path,
) -> None:
    worker = Worker(fails=(("b", 1),))
    for _ in range(2):
        with Journal(tmp_path / "j") as journal:
            trial = objective(worker, journal)({"a": 0.5, "b": 0.5})
        assert trial == Trial(None, "b holds NaN")
        assert trial.mean == -math.inf
    assert len(worker.asked) == 1
    (record,) = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert record == {
        "event": "trial",
        "scope": "s",
        "coefficients": {"a": 0.5, "b": 0.5},
        "block": None,
        "failed": "b holds NaN",
    }


def test_a_candidate_that_failed_on_a_block_has_failed() -> None:
    worker = Worker(fails=(("b", 1),))
    trials = objective(worker, None)
    assert trials.many([{"b": 1.0}], 0)[0].scores is not None
    assert trials.many([{"b": 1.0}], 1)[0].scores is None
    assert trials({"b": 1.0}).failure == "b holds NaN"
    assert len(worker.asked) == 2


def test_a_failure_under_another_scope_is_no_failure_here(tmp_path: Path) -> None:
    worker = Worker()
    with Journal(tmp_path / "j") as journal:
        objective(Worker(fails=(("b", 1),)), journal, scope="all")({"b": 1.0})
        assert objective(worker, journal, earlier=("all",))({"b": 1.0}).scores is not None
    assert len(worker.asked) == 1


class Backwards:
    """An executor with three workers, of whom the one that began last is done first."""

    workers = 3

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Trial]]:
        for start in range(0, len(jobs), self.workers):
            under_way = range(start, min(start + self.workers, len(jobs)))
            for index in reversed(under_way):
                yield index, self._worker(jobs[index].coefficients, jobs[index].block)

    def close(self) -> None:
        """It has none."""


def test_trials_come_in_the_order_in_which_they_were_asked_for(tmp_path: Path) -> None:
    candidates = [{"b": n / 10} for n in (3, 1, 2, 3, 5, 4)]
    with Journal(tmp_path / "j") as journal:
        trials = JournalledObjective(Backwards(Worker()), journal, scope="s", items=BLOCKS)
        found = trials.many(candidates)
        order = [record["coefficients"]["b"] for record in journal]
    assert [trial.scores for trial in found] == [landscape(each) for each in candidates]
    assert order == [0.2, 0.1, 0.3, 0.4, 0.5]  # as they finished, each once


def test_a_kill_loses_only_the_trials_under_way(tmp_path: Path) -> None:
    candidates = [{"b": n / 10} for n in range(1, 10)]
    for stop in range(9):
        first, second = Worker(fail_after=stop), Worker()
        with Journal(tmp_path / f"{stop}") as journal, pytest.raises(KeyboardInterrupt):
            JournalledObjective(Backwards(first), journal, scope="s", items=BLOCKS).many(candidates)
        with Journal(tmp_path / f"{stop}") as journal:
            again = JournalledObjective(Backwards(second), journal, scope="s", items=BLOCKS)
            assert [trial.scores for trial in again.many(candidates)] == [
                landscape(each) for each in candidates
            ]
        assert len(first.asked) + len(second.asked) == len(candidates)


def test_whoever_looks_on_hears_of_everything_that_is_asked_for_once_it_stands() -> None:
    heard: list[tuple[float, int | None, float]] = []

    def listen(job: Job, trial: Trial) -> None:
        heard.append((job.coefficients["b"], job.block, trial.mean))

    trials = objective(Worker(), None, on_trial=listen)
    trials.many([{"b": 0.1}], 1)
    trials.many([{"b": 0.1}, {"b": 0.2}])
    trials({"b": 0.2})
    means = {b: landscape({"b": b}).mean for b in (0.1, 0.2)}
    part = BLOCKS.part(landscape({"b": 0.1}), 1).mean
    assert heard == [(0.1, 1, part), *((b, None, means[b]) for b in (0.1, 0.2, 0.2))]


def test_an_executor_that_forgets_a_job_is_noticed() -> None:
    class Forgetful(Backwards):
        def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Trial]]:
            return super().run(jobs[1:])

    trials = JournalledObjective(Forgetful(Worker()), None, scope="s", items=BLOCKS)
    with pytest.raises(RuntimeError, match="without a trial"):
        trials.many([{"b": 0.1}, {"b": 0.2}])


def test_several_blocks_need_to_be_known_item_by_item() -> None:
    with pytest.raises(ValueError, match="which items"):
        JournalledObjective(Serial(Worker()), None, scope="s", items=(5, 5))
    with pytest.raises(IndexError, match="no block 3 of 3"):
        objective(Worker(), None).many([{"a": 1.0}], 3)


def test_a_plain_function_is_an_objective() -> None:
    asked: list[Mapping[str, float]] = []

    def function(coefficients: Mapping[str, float]) -> Scores:
        asked.append(coefficients)
        return landscape(coefficients)

    trials = in_memory(function, blocks=BLOCKS)
    assert trials.items == BLOCKS.items == (4, 4, 7)
    assert trials({"a": 1.0}).scores == trials({"a": 1.0}).scores == landscape({"a": 1.0})
    assert trials.many([{"b": 1.0}], 2)[0].scores == BLOCKS.part(landscape({"b": 1.0}), 2)
    assert len(asked) == 2
