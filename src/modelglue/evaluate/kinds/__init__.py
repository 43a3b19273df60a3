"""Task kinds: one file each, found by discovery.

A kind says which settings it takes, what an item must hold, and how a model is scored on items:

    @kinds.register("generate")
    class Generate: ...             # a `Kind`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.settings import Setting
from modelglue.registry import Registry

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One question: what its line in the file holds, checked by its kind."""

    id: str
    group: str
    record: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """What the model reads before it answers; the first of several (`multiple_input`)."""
        for name in ("prompt", "text"):
            if name in self.record:
                return str(self.record[name])
        return str(self.record["prompts"][0]) if "prompts" in self.record else ""


@dataclass(frozen=True)
class Measured:
    """What a kind returns: the main number of each item, and others by name."""

    values: list[float]
    metrics: Mapping[str, list[float]] = field(default_factory=dict)


class Kind(Protocol):
    """A kind of task; made without arguments."""

    settings: Mapping[str, Setting]
    runs_code: bool

    def problems(self, record: Mapping[str, Any]) -> list[str]:
        """Everything that is wrong with an item, each as "field: what"; empty if nothing is."""
        ...

    def question(self, record: Mapping[str, Any]) -> str:
        """What makes two items the same question: it must not stand in both splits."""
        ...

    def score(
        self,
        model: LanguageModel,
        items: Sequence[Item],
        settings: Settings,
        sandbox: Sandbox | None,
    ) -> Measured:
        """Score a model; one number per item, higher is better."""
        ...


kinds: Registry[type[Kind]] = Registry("task kind", "modelglue.evaluate.kinds")


def settings_of(kind: str, given: Mapping[str, Any], root: Path = Path()) -> dict[str, Any]:
    """Every setting of a kind, by name: what is given, else the default; files under `root`."""
    return {
        name: setting.read(given[name] if given.get(name) is not None else setting.default, root)
        for name, setting in kinds[kind].settings.items()
    }


def text_problems(record: Mapping[str, Any], *fields: str, empty: bool = False) -> list[str]:
    """What is wrong with the fields that must hold text."""
    return [
        f"{name}: {problem}"
        for name in fields
        if (problem := _text_problem(record, name, empty=empty))
    ]


def option_problems(record: Mapping[str, Any], one: str) -> list[str]:
    """What is wrong with an item's options, and with the index of the right one.

    Args:
        record: the item.
        one: what an option is called; its field is the plural.
    """
    found, options, answer = [], record.get(f"{one}s"), record.get("answer")
    if f"{one}s" not in record:
        found.append(f"{one}s: is missing")
    elif not isinstance(options, list) or len(options) < 2:
        found.append(f"{one}s: must be a list of at least two texts")
    elif not all(isinstance(option, str) and option for option in options):
        found.append(f"{one}s: must all be text, none of them empty")
    if "answer" not in record:
        found.append("answer: is missing")
    elif isinstance(answer, bool) or not isinstance(answer, int):
        found.append(f"answer: must be the index of a {one}, not {answer!r:.60}")
    elif isinstance(options, list) and not 0 <= answer < len(options):
        found.append(f"answer: {answer} is no index of {len(options)} {one}s, counted from 0")
    return found


def _text_problem(record: Mapping[str, Any], name: str, *, empty: bool) -> str | None:
    if name not in record:
        return "is missing"
    value = record[name]
    if not isinstance(value, str):
        return f"must be text, not {value!r:.60}"
    if not value and not empty:
        return "is empty"
    return None


def joined(context: str, continuation: str) -> str:
    """The continuation with the space that belongs between it and its context.

    One space, unless there is white space on either side already or nothing to be parted from.

    >>> joined("Answer:", "Paris"), joined("Answer:\\n", "Paris"), joined("", "Paris")
    (' Paris', 'Paris', 'Paris')
    """
    if not context or context[-1].isspace() or continuation[:1].isspace():
        return continuation
    return " " + continuation
