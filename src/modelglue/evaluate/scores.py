"""Scores keep one number per item: selection, racing, intervals and tests all need the items."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelglue.errors import EvaluationError, NonFiniteOutput


@dataclass(frozen=True)
class TaskScores:
    """One model's scores on the items of one split of one task.

    Attributes:
        task: the task's name.
        items: the items' ids, in the order of the file.
        values: one number per item, in [0, 1] for the built-in kinds; higher is better.
        groups: items of one group stand or fall together (one fact asked in several wordings), so
            intervals resample whole groups. By default every item is its own group.
        metrics: further numbers per item beside the main one, by name (acc, acc_norm, nll, …).

    Raises:
        NonFiniteOutput: a value or metric is not finite; NaN is never a score.
    """

    task: str
    items: tuple[str, ...]
    values: tuple[float, ...]
    groups: tuple[str, ...] = ()
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", self.items)
        if not self.items:
            raise EvaluationError(f"task {self.task}: no items were scored")
        columns = {"values": self.values, "groups": self.groups, **self.metrics}
        for name, column in columns.items():
            if len(column) != len(self.items):
                raise ValueError(f"{self.task}: {len(column)} {name} for {len(self.items)} items")
        for name, numbers in {"values": self.values, **self.metrics}.items():
            for item, number in zip(self.items, numbers, strict=True):
                if not math.isfinite(number):
                    raise NonFiniteOutput(f"task {self.task}, item {item}: {name} is {number}")

    @property
    def mean(self) -> float:
        """The plain mean over the items, exactly rounded, so that no order of summing shows."""
        return math.fsum(self.values) / len(self.values)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record that `from_json` reads back to an equal object."""
        record: dict[str, Any] = {
            "task": self.task,
            "items": list(self.items),
            "values": list(self.values),
        }
        if self.groups != self.items:
            record["groups"] = list(self.groups)
        if self.metrics:
            record["metrics"] = {name: list(column) for name, column in self.metrics.items()}
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "TaskScores":
        """What `to_json` wrote."""
        metrics = record.get("metrics", {})
        return cls(
            task=record["task"],
            items=tuple(record["items"]),
            values=tuple(record["values"]),
            groups=tuple(record.get("groups", ())),
            metrics={name: tuple(column) for name, column in metrics.items()},
        )


@dataclass(frozen=True)
class Scores:
    """One model's scores on several tasks.

    >>> a = TaskScores("maths", ("1", "2"), (1.0, 0.0))
    >>> b = TaskScores("code", ("1",), (1.0,))
    >>> Scores((a, b)).mean, Scores((a, b)).by_task()
    (0.75, {'maths': 0.5, 'code': 1.0})
    """

    tasks: tuple[TaskScores, ...]

    @property
    def mean(self) -> float:
        """The plain mean of the tasks' means: every task counts the same, however many items."""
        if not self.tasks:
            raise EvaluationError("no tasks were scored")
        return math.fsum(task.mean for task in self.tasks) / len(self.tasks)

    def by_task(self) -> dict[str, float]:
        """The mean of each task, by name."""
        return {task.task: task.mean for task in self.tasks}

    def __getitem__(self, name: str) -> TaskScores:
        """The scores of the task of that name (KeyError if there is none)."""
        for task in self.tasks:
            if task.task == name:
                return task
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record that `from_json` reads back to an equal object."""
        return {"tasks": [task.to_json() for task in self.tasks]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Scores":
        """What `to_json` wrote."""
        return cls(tuple(TaskScores.from_json(task) for task in record["tasks"]))


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores on several sets of items of the same tasks as one, set after set."""
    tasks = [[part[task.task] for part in parts] for task in parts[0].tasks]
    return Scores(tuple(map(chained, tasks)))


def chained(parts: Sequence[TaskScores]) -> TaskScores:
    """The same for one task."""
    return TaskScores(
        task=parts[0].task,
        items=tuple(item for part in parts for item in part.items),
        values=tuple(value for part in parts for value in part.values),
        groups=tuple(group for part in parts for group in part.groups),
        metrics={
            name: tuple(number for part in parts for number in part.metrics[name])
            for name in parts[0].metrics
        },
    )
