"""The tasks of a suite: items come from published files, and no question stands in both splits.

    tasks:
      - {suite: paper, data: FOLDER}                      # six tasks
      - {suite: paper, data: FOLDER, tasks: [mmlu, mbpp]} # two of them

`paper-proxy` and `paper-report` are the two splits by themselves, for scoring a model.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.errors import TaskError
from modelglue.evaluate.items import shown
from modelglue.evaluate.kinds import Item, kinds, settings_of
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.scores import TaskScores
from modelglue.evaluate.suites.paper import PAPER, Part
from modelglue.evaluate.suites.published import read_rows
from modelglue.evaluate.suites.question import Question
from modelglue.evaluate.task import SPLITS, SplitName, chosen, score_items
from modelglue.registry import nearest

SUITES: Mapping[str, tuple[SplitName, ...]] = {
    "paper": SPLITS,
    "paper-proxy": ("search",),
    "paper-report": ("report",),
}
"""The splits of each suite."""


@dataclass(frozen=True)
class SuiteTaskConfig:
    """One task of a suite.

    Attributes:
        data: the folder that holds a folder a dataset; None for the hub.
    """

    name: str
    suite: str = "paper"
    data: Path | None = None

    def to_mapping(self) -> dict[str, Any]:
        """See `TaskConfig.to_mapping`."""
        mapping: dict[str, Any] = {"suite": self.suite, "tasks": [self.name]}
        return mapping if self.data is None else mapping | {"data": str(self.data)}

    def open(self) -> "SuiteTask":
        """See `TaskConfig.open`."""
        return SuiteTask(self)


def parse_suite(
    mapping: Mapping[str, Any],
    path: str,
    *,
    root: Path,
    splits: Sequence[SplitName],
    problems: list[str],
) -> list[SuiteTaskConfig]:
    """The tasks that a mapping with `suite` names; what is wrong is added to `problems`.

    Args:
        path: where the mapping stands in the configuration.
        root: what `data` is relative to.
        splits: those that the tasks must have.
    """
    keys = ("suite", "data", "tasks")
    found = [
        f"{path}.{key}: no suite knows this key{nearest(str(key), keys)}"
        for key in mapping
        if key not in keys
    ]
    suite, data, names = mapping["suite"], mapping.get("data"), mapping.get("tasks")
    if not isinstance(suite, str) or suite not in SUITES:
        hint = nearest(str(suite), SUITES) or "."
        found.append(f"{path}.suite: there is no {suite!r}{hint} Known: {', '.join(SUITES)}")
    elif lacking := [split for split in splits if split not in SUITES[suite]]:
        found.append(f"{path}.suite: {suite} has no {lacking[0]} items; paper has both")
    if data is not None and (not isinstance(data, str | Path) or not str(data)):
        found.append(f"{path}.data: must be a folder, not {data!r}")
    if names is None:
        names = list(PAPER)
    if not isinstance(names, list) or not names:
        found.append(f"{path}.tasks: must be a list of {', '.join(PAPER)}")
        names = []
    found += [
        f"{path}.tasks: there is no {name!r}{nearest(str(name), PAPER)}. Known: {', '.join(PAPER)}"
        for name in names
        if not isinstance(name, str) or name not in PAPER
    ]
    problems += found
    if found:
        return []
    folder = None if data is None else root / data
    return [SuiteTaskConfig(name, suite, folder) for name in names]


class SuiteTask:
    """A task of a suite, whose files are read when they are first asked for; a `Task`."""

    runs_code: bool

    def __init__(self, config: SuiteTaskConfig) -> None:
        self.config = config
        pair = PAPER[config.name]
        self._parts: dict[SplitName, Part] = {"search": pair.search, "report": pair.report}
        self.runs_code = any(kinds[self._parts[s].kind].runs_code for s in SUITES[config.suite])
        self._read: dict[SplitName, tuple[Item, ...]] | None = None
        self._openings: Mapping[str, str] = {}

    @property
    def name(self) -> str:
        """The task's name."""
        return self.config.name

    @property
    def kind(self) -> str:
        """The kind's name; the splits of a task have the same."""
        return self._parts["report"].kind

    def check(self) -> None:
        """See `Task.check`: each missing file with where it was looked for and where to get it."""
        self._items()

    def items(self, split: SplitName) -> tuple[Item, ...]:
        """See `Task.items`: in the order of the published file."""
        if split not in SUITES[self.config.suite]:
            raise TaskError(f"task {self.name}: {self.config.suite} has no {split} items")
        return self._items()[split]

    def question(self, item: Item) -> str:
        """See `Task.question`."""
        prompt = {"prompt": item.prompt.removeprefix(self._openings.get(item.id, ""))}
        return kinds[self.kind]().question({**item.record, **prompt})

    def evaluate(
        self,
        model: LanguageModel,
        split: SplitName,
        *,
        sandbox: Sandbox | None = None,
        part: Sequence[int] | None = None,
    ) -> TaskScores:
        """See `Task.evaluate`."""
        items = chosen(self.items(split), part)
        how = self._parts[split]
        settings = settings_of(how.kind, how.settings)
        return score_items(self.name, how.kind, settings, items, model, split, sandbox)

    def digest(self) -> str:
        """A digest of the items and of how they are scored."""
        content = {
            split: [self._parts[split].kind, dict(self._parts[split].settings)]
            + [[item.id, item.record] for item in items]
            for split, items in self._items().items()
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _items(self) -> dict[SplitName, tuple[Item, ...]]:
        """Both splits; the search split is read even where only the other is scored.

        What stands in it must not count there, so that a report is the same with or without a
        search.
        """
        if self._read is None:
            search, report = self._questions()
            seen = frozenset().union(*(question.marks for question in search))
            kept = [question for question in report if not question.marks & seen]
            if not kept:
                raise TaskError(f"task {self.name}: every report item stands in the search split")
            self._openings = {each.id: each.opening for each in (*search, *kept)}
            self._read = {"search": _as_items(search), "report": _as_items(kept)}
        return self._read

    def _questions(self) -> list[list[Question]]:
        found = []
        problems: list[str] = []
        for part in self._parts.values():
            rows = []
            for source in part.sources:
                try:
                    rows.append(read_rows(source, self.config.data))
                except TaskError as error:
                    problems.append(str(error))
            if len(rows) < len(part.sources):
                continue
            try:
                found.append(_distinct(part.questions(*rows), rows[0][0].place))
            except TaskError as error:
                problems.append(str(error))
        if problems:
            problems = list(dict.fromkeys(problems))  # a file may serve both splits
            raise TaskError(f"task {self.name}: {shown(problems)}")
        return found


def _distinct(questions: list[Question], place: str) -> list[Question]:
    if not questions:
        raise TaskError(f"{place.split(':')[0]}: holds none of this split's items")
    twice = [name for name, times in Counter(q.id for q in questions).items() if times > 1]
    if twice:
        raise TaskError(f"{place}: {len(twice)} ids stand twice, such as {twice[0]!r}")
    return questions


def _as_items(questions: Sequence[Question]) -> tuple[Item, ...]:
    return tuple(Item(q.id, q.id, {"id": q.id, **q.record}) for q in questions)
