"""What may stand under `tasks:`, whichever way a task is given.

tasks:
  - {name: maths, kind: generate, search: math.search.jsonl, report: math.report.jsonl}
  - harness:arc_challenge
  - {harness: my_task, name: mine, include: tasks, shots: 5}
  - {suite: paper, data: FOLDER}
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelglue.evaluate.file_task import FileTask, file_task_problems
from modelglue.evaluate.harness.task import PREFIX, parse_harness
from modelglue.evaluate.suites.task import parse_suite
from modelglue.evaluate.task import SPLITS, SplitName, TaskConfig


def parse_tasks(
    value: Sequence[Any],
    *,
    root: Path,
    problems: list[str],
    path: str = "tasks",
    splits: Sequence[SplitName] = SPLITS,
) -> tuple[TaskConfig, ...]:
    """The tasks of a list; what is wrong is added to `problems`. Reads no file.

    Args:
        root: what paths are relative to.
        path: where the list stands in the configuration.
        splits: those that every task must have.
    """
    tasks = [
        task
        for index, each in enumerate(value)
        for task in _parse(each, f"{path}[{index}]", root, splits, problems)
    ]
    for name, times in Counter(task.name for task in tasks).items():
        if times > 1:
            problems.append(f"{path}: {times} are called {name!r}")
    return tuple(tasks)


def _parse(
    value: Any, path: str, root: Path, splits: Sequence[SplitName], problems: list[str]
) -> Sequence[TaskConfig]:
    if isinstance(value, str):
        if not value.startswith(PREFIX):
            problems.append(f"{path}: must be {PREFIX}NAME or a mapping, not {value!r}")
            return []
        value = {"harness": value.removeprefix(PREFIX)}
    if isinstance(value, Mapping) and "harness" in value:
        task = parse_harness(value, path, root=root, splits=splits, problems=problems)
        return [] if task is None else [task]
    if isinstance(value, Mapping) and "suite" in value:
        return parse_suite(value, path, root=root, splits=splits, problems=problems)
    if found := file_task_problems(value, path, splits=splits):
        problems += found
        return []
    return [FileTask.from_mapping(value, root=root, splits=splits).config]
