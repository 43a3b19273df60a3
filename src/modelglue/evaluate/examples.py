"""Few-shot examples: items with their answers that stand before every question.

They are the first of a file of the task's own kind, the same for all items, so that what they say
is computed once. As in lm-evaluation-harness each is its prompt, a space and its answer, with a
blank line after it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelglue.errors import TaskError
from modelglue.evaluate.items import Split, overlaps, read_split, shown
from modelglue.evaluate.kinds import Item, Kind, joined

SEPARATOR = "\n\n"


def setting_problems(mapping: Mapping[str, Any], path: str) -> list[str]:
    """What is wrong with a task's few-shot settings, each of which is right by itself.

    >>> setting_problems({"shots": 5}, "tasks[0]")
    ['tasks[0].examples: is missing; a file to take the 5 shots from']
    """
    shots, file = mapping.get("shots"), mapping.get("examples")
    if file is None and isinstance(shots, int) and shots > 0:
        return [f"{path}.examples: is missing; a file to take the {shots} shots from"]
    if file is not None and shots is None:
        return [f"{path}.shots: is missing; how many of the examples stand before each item"]
    return []


class Examples:
    """The examples of a task, read when they are first asked for.

    Args:
        settings: of the task, with or without `shots` and `examples`.
    """

    def __init__(self, settings: Mapping[str, Any], kind: Kind) -> None:
        self._shots: int = settings.get("shots") or 0
        self._path: Path | None = settings.get("examples") if self._shots else None
        self._kind = kind
        self._read: Split | None = None

    @property
    def files(self) -> list[Path]:
        """The files that they come from."""
        return [] if self._path is None else [self._path]

    def items(self) -> tuple[Item, ...]:
        """As many as there are shots.

        Raises:
            TaskError: with everything that is wrong with the file.
        """
        if problems := self.problems(()):
            raise TaskError(shown(problems))
        return self._split().items

    def problems(self, splits: Sequence[Split]) -> list[str]:
        """Everything that is wrong with them, and examples that are also items of the splits."""
        if self._path is None:
            return []
        read = self._split()
        found = list(read.problems)
        if not found and len(read.items) < self._shots:
            found.append(f"{self._path}: holds {len(read.items)} items, and shots is {self._shots}")
        for split in splits:
            found += overlaps(read, split, self._kind, where="among the examples")
        return found

    def _split(self) -> Split:
        if self._path is None:
            return Split(Path(), (), (), ())
        if self._read is None:
            read = read_split(self._path, self._kind)
            shots = slice(self._shots)
            self._read = Split(read.path, read.items[shots], read.lines[shots], read.problems)
        return self._read


def opening(
    settings: Mapping[str, Any], answered: Callable[[Mapping[str, Any]], tuple[str, str]]
) -> str:
    """The text that stands before every item; empty without examples.

    Args:
        settings: with the example items under `examples`.
        answered: the prompt and the answer of an item.

    >>> example = Item("1", "1", {"prompt": "2 + 2 =", "answer": "4"})
    >>> opening({"examples": (example,)}, lambda record: (record["prompt"], record["answer"]))
    '2 + 2 = 4\\n\\n'
    """
    written = [answered(item.record) for item in settings.get("examples") or ()]
    return "".join(f"{prompt}{joined(prompt, answer)}{SEPARATOR}" for prompt, answer in written)
