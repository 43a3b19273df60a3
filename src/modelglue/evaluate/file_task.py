"""A task whose items are files of the user's: JSON Lines, one a split, scored by a kind."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.errors import ConfigError, TaskError
from modelglue.evaluate.examples import Examples, setting_problems
from modelglue.evaluate.items import Split, overlaps, read_split, shown
from modelglue.evaluate.kinds import Item, kinds, settings_of
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.scores import TaskScores
from modelglue.evaluate.task import SPLITS, SplitName, chosen, score_items
from modelglue.registry import nearest


@dataclass(frozen=True)
class FileTaskConfig:
    """What a user says about such a task, defaults filled in.

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
        """See `TaskConfig.to_mapping`."""
        files: dict[str, str] = {s: str(path) for s in SPLITS if (path := getattr(self, s))}
        settings = {name: _plain(value) for name, value in self.settings.items()}
        return {"name": self.name, "kind": self.kind, **settings, **files}

    def open(self) -> "FileTask":
        """See `TaskConfig.open`."""
        return FileTask(self)


def file_task_problems(
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
        if "shots" in settings:
            problems += setting_problems(mapping, path)
    return problems


class FileTask:
    """A task whose items are read when they are first asked for; a `Task`."""

    def __init__(self, config: FileTaskConfig) -> None:
        self.config = config
        self._kind = kinds[config.kind]()
        self._splits: dict[SplitName, Split] = {}
        self._examples = Examples(config.settings, self._kind)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], *, root: Path, splits: Sequence[SplitName] = SPLITS
    ) -> "FileTask":
        """A task as it stands in a configuration, files relative to `root`; reads no file.

        Raises:
            ConfigError: with everything that is wrong (`file_task_problems`).
        """
        name = mapping.get("name") if isinstance(mapping, Mapping) else None
        if problems := file_task_problems(
            mapping, f"task {name}" if name else "task", splits=splits
        ):
            raise ConfigError(problems)
        files = {s: root / mapping[s] if s in mapping else None for s in SPLITS}
        return cls(
            FileTaskConfig(
                name=str(mapping["name"]),
                kind=mapping["kind"],
                search=files["search"],
                report=files["report"],
                settings=settings_of(mapping["kind"], mapping, root),
            )
        )

    @property
    def name(self) -> str:
        """The task's name."""
        return self.config.name

    @property
    def kind(self) -> str:
        """The kind's name."""
        return self.config.kind

    @property
    def runs_code(self) -> bool:
        """Whether a sandbox is needed."""
        return self._kind.runs_code

    def check(self) -> None:
        """See `Task.check`: each problem has its file, line and field."""
        read = [self._split(s) for s in SPLITS if getattr(self.config, s) is not None]
        problems = [problem for split in read for problem in split.problems]
        if len(read) == len(SPLITS):
            problems += overlaps(read[0], read[1], self._kind)
        problems += self._examples.problems(read)
        if problems:
            raise TaskError(f"task {self.name}: {shown(problems)}")

    def items(self, split: SplitName) -> tuple[Item, ...]:
        """See `Task.items`: in the order of the file."""
        read = self._split(split)
        if read.problems:
            raise TaskError(f"task {self.name}: {shown(read.problems)}")
        return read.items

    def question(self, item: Item) -> str:
        """See `Task.question`."""
        return self._kind.question(item.record)

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
        settings = {**self.config.settings, "examples": self._examples.items()}
        return score_items(self.name, self.kind, settings, items, model, split, sandbox)

    def digest(self) -> str:
        """A digest of the files as they are now, not as they were read."""
        files = [path for s in SPLITS if (path := getattr(self.config, s)) is not None]
        files += self._examples.files
        content = b"\0".join(file.read_bytes() for file in files)
        return hashlib.sha256(content).hexdigest()

    def _split(self, split: SplitName) -> Split:
        path: Path | None = getattr(self.config, split)
        if path is None:
            raise TaskError(f"task {self.name} has no {split} split")
        if split not in self._splits:
            self._splits[split] = read_split(path, self._kind)
        return self._splits[split]


def _plain(value: Any) -> Any:
    """A setting as it would stand in a configuration."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
