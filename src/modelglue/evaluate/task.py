"""What a task is, wherever its items come from: two disjoint splits, scored item by item.

`search` items are what a recipe may look at as often as it likes; `report` items are scored once,
after every choice is made.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

from modelglue.errors import TaskError
from modelglue.evaluate.items import shown
from modelglue.evaluate.kinds import Item, kinds
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import OneEach, Sandbox
from modelglue.evaluate.scores import TaskScores

SplitName = Literal["search", "report"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


class TaskConfig(Protocol):
    """What a user says about a task, checked, defaults filled in; nothing of it is read yet."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    def to_mapping(self) -> dict[str, Any]:
        """The same as plain data, as it would stand in a configuration."""
        ...

    def open(self) -> "Task":
        """The task, whose items are read when they are first asked for."""
        ...


class Task(Protocol):
    """Items in two splits, and a way to score a model on them."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    @property
    def kind(self) -> str:
        """How it is scored, in a word for reports."""
        ...

    @property
    def runs_code(self) -> bool:
        """Whether a sandbox is needed."""
        ...

    def check(self) -> None:
        """Read the items and refuse what is wrong with them, or stands in both splits.

        Raises:
            TaskError: with everything that is wrong.
        """
        ...

    def items(self, split: SplitName) -> tuple[Item, ...]:
        """The items of a split, always in the same order.

        Raises:
            TaskError: with everything that is wrong with them.
        """
        ...

    def question(self, item: Item) -> str:
        """What one of its items asks, without examples; its parts stand behind "\\0".

        Items that ask the same are the same, whatever their tasks.
        """
        ...

    def evaluate(
        self,
        model: LanguageModel,
        split: SplitName,
        *,
        sandbox: Sandbox | None = None,
        part: Sequence[int] | None = None,
    ) -> TaskScores:
        """Score a model on a split.

        Args:
            sandbox: needed if the task runs code; each program of the report split gets one of its
                own, those of the search split share a few.
            part: indices of the items to score, in this order; by default all of them.

        Raises:
            TaskError: the items are wrong.
            SandboxUnavailable: the task runs code and no sandbox is given.
            EvaluationError: the model gave no usable number.
        """
        ...

    def digest(self) -> str:
        """Changes whenever the items or the way of scoring them do."""
        ...


def score_items(
    task: str,
    kind: str,
    settings: Mapping[str, Any],
    items: Sequence[Item],
    model: LanguageModel,
    split: SplitName,
    sandbox: Sandbox | None,
) -> TaskScores:
    """Score a model on items of one of our kinds; see `Task.evaluate`."""
    if sandbox is not None and split == "report":
        sandbox = OneEach(sandbox)
    measured = kinds[kind]().score(model, items, settings, sandbox)
    return TaskScores(
        task=task,
        items=tuple(item.id for item in items),
        values=tuple(measured.values),
        groups=tuple(item.group for item in items),
        metrics={name: tuple(column) for name, column in measured.metrics.items()},
    )


def check_tasks(tasks: Sequence[Task]) -> None:
    """Check every task; what is wrong with any of them comes at once.

    Raises:
        TaskError: with everything that is wrong.
    """
    problems = []
    for task in tasks:
        try:
            task.check()
        except TaskError as error:
            problems.append(str(error))
    if problems:
        raise TaskError(shown(problems))


def chosen(items: Sequence[Item], part: Sequence[int] | None) -> Sequence[Item]:
    """The items of these indices, in their order; all of them for None."""
    return items if part is None else [items[index] for index in part]
