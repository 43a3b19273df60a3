"""A task: items on disk, a kind that scores them, and two disjoint splits.

`search` items are what a recipe may look at as often as it likes; `report` items are scored once,
after every choice is made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from modelglue.errors import ConfigError, TaskError
from modelglue.evaluate.items import Split, overlaps, read_split, shown
from modelglue.evaluate.kinds import Item, Kind, kinds
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.registry import nearest

SplitName = Literal["search", "report"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True)
class TaskConfig:
    """What a user says about a task, defaults filled in.

    Attributes:
        search, report: the splits' files; None where only the other split is used.
        settings: every setting of the kind, by name.
    """

    name: str
    kind: str
    search: Path | None
    report: Path | None
    settings: Mapping[str, Any]

    def to_mapping(self) -> dict[str, Any]:
        """The same as plain data, as it would stand in a configuration."""
        files: dict[str, str] = {s: str(path) for s in SPLITS if (path := getattr(self, s))}
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in self.settings.items()}
        return {"name": self.name, "kind": self.kind, **settings, **files}


def task_problems(
    mapping: Any, path: str = "task", *, splits: Sequence[SplitName] = SPLITS
) -> list[str]:
    """Everything that is wrong with a task's configuration, each "key.path: what"; reads no file.

    Args:
        mapping: what stands in the configuration.
        path: where it stands there, such as `tasks[0]`.
        splits: the splits that must be given.
    """
    if not isinstance(mapping, Mapping):
        return [f"{path}: must be a mapping with name, kind, {', '.join(splits)}"]
    problems = [
        f"{path}.{key}: is missing" for key in ("name", "kind", *splits) if key not in mapping
    ]
    for key in ("name", *SPLITS):
        value = mapping.get(key, "given")
        if not isinstance(value, str | Path) or not str(value).strip():
            problems.append(f"{path}.{key}: must be text, not {value!r}")
    kind = mapping.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        if kind is not None:
            hint = nearest(str(kind), kinds) or "."
            problems.append(f"{path}.kind: there is no {kind!r}{hint} Known: {', '.join(kinds)}")
    else:
        settings = kinds[kind].settings
        known = ["name", "kind", *SPLITS, *settings]
        for key, value in mapping.items():
            if key not in known:
                problems.append(
                    f"{path}.{key}: no {kind} task knows this key{nearest(str(key), known)}"
                )
            elif key in settings and (problem := settings[key].problem(value)):
                problems.append(f"{path}.{key}: {problem}")
    return problems


class Task:
    """A task whose items are read when they are first asked for."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self._kind: Kind = kinds[config.kind]()
        self._splits: dict[SplitName, Split] = {}

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], *, root: Path, splits: Sequence[SplitName] = SPLITS
    ) -> "Task":
        """A task as it stands in a configuration, files relative to `root`; reads no file.

        Raises:
            ConfigError: with everything that is wrong (`task_problems`).
        """
        name = mapping.get("name") if isinstance(mapping, Mapping) else None
        if problems := task_problems(mapping, f"task {name}" if name else "task", splits=splits):
            raise ConfigError(problems)
        settings = kinds[mapping["kind"]].settings
        files = {s: root / mapping[s] if s in mapping else None for s in SPLITS}
        return cls(
            TaskConfig(
                name=str(mapping["name"]),
                kind=mapping["kind"],
                search=files["search"],
                report=files["report"],
                settings={
                    key: s.read(mapping[key] if mapping.get(key) is not None else s.default)
                    for key, s in settings.items()
                },
            )
        )

    @property
    def name(self) -> str:
        """The task's name."""
        return self.config.name

    @property
    def runs_code(self) -> bool:
        """Whether a sandbox is needed."""
        return self._kind.runs_code

    def problems(self) -> list[str]:
        """Everything that is wrong with the files, and items that stand in both splits."""
        read = [self._split(s) for s in SPLITS if getattr(self.config, s) is not None]
        found = [problem for split in read for problem in split.problems]
        if len(read) == 2:
            found += overlaps(read[0], read[1], self._kind)
        return found

    def check(self) -> None:
        """Read all files and refuse what is wrong with them.

        Raises:
            TaskError: with everything that is wrong, each with file, line and field.
        """
        if problems := self.problems():
            raise TaskError(f"task {self.name}: {shown(problems)}")

    def check_disjoint(self) -> None:
        """Refuse a task whose splits share an id, a question or a group.

        Raises:
            TaskError: with every item of the report split that stands in the search split.
        """
        if problems := overlaps(self._split("search"), self._split("report"), self._kind):
            raise TaskError(f"task {self.name}: {shown(problems)}")

    def items(self, split: SplitName) -> tuple[Item, ...]:
        """The items of a split, in the order of the file.

        Raises:
            TaskError: with everything that is wrong with the file.
        """
        read = self._split(split)
        if read.problems:
            raise TaskError(f"task {self.name}: {shown(read.problems)}")
        return read.items

    def evaluate(
        self, model: LanguageModel, split: SplitName, *, sandbox: Sandbox | None = None
    ) -> TaskScores:
        """Score a model on a split.

        Raises:
            TaskError: the items are wrong.
            SandboxUnavailable: the task runs code and no sandbox is given.
            EvaluationError: the model gave no usable number.
        """
        items = self.items(split)
        measured = self._kind.score(model, items, self.config.settings, sandbox)
        return TaskScores(
            task=self.name,
            items=tuple(item.id for item in items),
            values=tuple(measured.values),
            groups=tuple(item.group for item in items),
            metrics={name: tuple(column) for name, column in measured.metrics.items()},
        )

    def _split(self, split: SplitName) -> Split:
        path: Path | None = getattr(self.config, split)
        if path is None:
            raise TaskError(f"task {self.name} has no {split} split")
        if split not in self._splits:
            self._splits[split] = read_split(path, self._kind)
        return self._splits[split]


def evaluate(
    model: LanguageModel,
    tasks: Sequence[Task],
    split: SplitName,
    *,
    sandbox: Sandbox | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Score a model on a split of every task.

    Args:
        sandbox: needed if a task runs code.
        progress: called before each task with its name, how many are done, and how many there are.
    """
    scores = []
    for done, task in enumerate(tasks):
        if progress is not None:
            progress(task.name, done, len(tasks))
        scores.append(task.evaluate(model, split, sandbox=sandbox))
    return Scores(tuple(scores))
