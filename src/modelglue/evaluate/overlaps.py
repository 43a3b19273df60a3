"""Questions that one task asks in its search and another in its report."""

from collections.abc import Sequence

from modelglue.evaluate.suites.question import mark
from modelglue.evaluate.task import SplitName, Task


def overlaps_across(tasks: Sequence[Task]) -> list[str]:
    """Each pair of tasks of which one reports what the other searches, in words.

    A score on items that the search has seen is no evidence, whichever task they were seen in. That
    no task does so by itself is its own check.

    Raises:
        TaskError: the items of a task are wrong.
    """
    if len(tasks) < 2:
        return []
    searched, reported = (_questions(tasks, split) for split in ("search", "report"))
    problems = []
    for task, seen in searched.items():
        for other, asked in reported.items():
            shared = [question for question in asked if question in seen] if other != task else []
            if shared:
                problems.append(
                    f"tasks {task} and {other}: {len(shared)} report items of {other} ask what "
                    f"search items of {task} ask, such as {asked[shared[0]]!r} of {other} and "
                    f"{seen[shared[0]]!r} of {task}. What was searched on proves nothing: leave "
                    "these questions, or one of the tasks, out"
                )
    return problems


def _questions(tasks: Sequence[Task], split: SplitName) -> dict[str, dict[str, str]]:
    """Task → question → the item that asks it."""
    return {
        task.name: {mark(*task.question(i).split("\0")): i.id for i in task.items(split)}
        for task in tasks
    }
