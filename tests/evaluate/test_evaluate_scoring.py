"""Programs run while the model is at the next task, and nothing else changes."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from modelglue.errors import NonFiniteOutput, SandboxUnavailable
from modelglue.evaluate.sandbox import Outcome, Program
from modelglue.evaluate.scores import TaskScores
from modelglue.evaluate.scoring import evaluate

PATIENCE = 20.0


class Model:
    """Refuses to be with two tasks at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked: list[str] = []
        self.at_the_last = threading.Event()

    def ask(self, task: str) -> None:
        assert self._lock.acquire(blocking=False), "the model is with another task"
        self.asked.append(task)
        if task == "words":
            self.at_the_last.set()
        self._lock.release()


class Waiting:
    """Ends a program only when the model is at the task without programs."""

    name = "waiting"

    def __init__(self, model: Model) -> None:
        self._model = model

    def run(self, programs: Sequence[Program], **_: Any) -> list[Outcome]:
        assert self._model.at_the_last.wait(PATIENCE), "the next task waits for programs"
        return [Outcome(p.source == "good", "passed", "") for p in programs]


@dataclass
class Scripted:
    """A task that asks the model once, and may run two programs."""

    name: str
    runs_code: bool = False
    fails: Exception | None = None
    kind: str = "scripted"
    parts: list[Any] = field(default_factory=list)

    def evaluate(
        self, model: Any, split: str, *, sandbox: Any = None, part: Any = None
    ) -> TaskScores:
        model.ask(self.name)
        self.parts.append(part)
        if self.fails is not None:
            raise self.fails
        values = (0.25, 0.75)
        if self.runs_code:
            outcomes = sandbox.run([Program("good"), Program("bad")])
            values = tuple(float(outcome.passed) for outcome in outcomes)
        return TaskScores(self.name, ("a", "b"), values, ("a", "b"))


def test_the_next_task_begins_while_programs_run() -> None:
    model, told = Model(), []
    tasks: list[Any] = [Scripted("words"), Scripted("code", True), Scripted("more code", True)]
    found = evaluate(
        model,  # type: ignore[arg-type]
        tasks,
        "search",
        sandbox=Waiting(model),
        parts={task.name: [number] for number, task in enumerate(tasks)},
        progress=lambda *said: told.append(said),
    )
    assert model.asked[0] == "code"
    assert [task.task for task in found.tasks] == ["words", "code", "more code"]
    assert found["words"].values == (0.25, 0.75)
    assert found["code"].values == found["more code"].values == (1.0, 0.0)
    assert [task.parts for task in tasks] == [[[0]], [[1]], [[2]]]
    assert told == [("code", 0, 3), ("more code", 1, 3), ("words", 2, 3)]


def test_a_task_that_fails_ends_it_before_the_next_begins() -> None:
    model = Model()
    broken: Any = Scripted("code", True, NonFiniteOutput("the model says NaN"))
    with pytest.raises(NonFiniteOutput, match="NaN"):
        evaluate(model, [Scripted("words"), broken], "search", sandbox=Waiting(model))  # type: ignore[arg-type,list-item]
    assert model.asked == ["code"]


def test_programs_that_fail_are_told_when_the_model_is_done() -> None:
    class Broken(Waiting):
        def run(self, programs: Sequence[Program], **_: Any) -> list[Outcome]:
            super().run(programs)
            raise SandboxUnavailable("the sandbox is gone")

    model = Model()
    tasks: list[Any] = [Scripted("code", True), Scripted("words")]
    with pytest.raises(SandboxUnavailable, match="gone"):
        evaluate(model, tasks, "search", sandbox=Broken(model))  # type: ignore[arg-type]
    assert model.asked == ["code", "words"]
