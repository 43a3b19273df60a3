"""What a task kind can be told: each setting declared once, with its range, default and meaning.

The declaration serves validation and messages; whoever reads a configuration asks `problem`, and
keeps what `read` returns.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast


@dataclass(frozen=True)
class Setting:
    """One setting of a task kind.

    Attributes:
        sort: what may be given. `texts` is a list of texts (one text stands for a list of one);
            `pattern` is a regular expression; `choice` one of `choices`; `file` a task file of the
            same kind, whose items are what the kind is given.
        default: what holds when nothing is given; None where a setting may be left out.
        meaning: one line for the documentation.
        low, high: the range of a number, both ends allowed.
        above: a bound that a number must exceed.
        choices: the words that a `choice` knows.
    """

    sort: Literal["integer", "number", "texts", "pattern", "choice", "file"]
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """What is wrong with `value`, as the end of a sentence; None if nothing is.

        >>> Setting("integer", 64, "", low=1).problem(0)
        'must be a whole number of at least 1, not 0'
        """
        if value is None and self.default is None:
            return None
        fits, expected = {
            "integer": (self._is_number(value, int), "a whole number" + self._range()),
            "number": (self._is_number(value, (int, float)), "a number" + self._range()),
            "texts": (_is_texts(value), "a text or a list of texts, none of them empty"),
            "pattern": (isinstance(value, str) and value != "", "a regular expression"),
            "choice": (value in self.choices, "one of " + ", ".join(self.choices)),
            "file": (isinstance(value, str | Path) and str(value).strip() != "", "a file"),
        }[self.sort]
        if not fits:
            return f"must be {expected}, not {value!r}"
        if self.sort == "pattern":
            try:
                re.compile(value)
            except re.error as error:
                return f"is not a regular expression: {error}"
        return None

    def read(self, value: Any, root: Path = Path()) -> Any:
        """The value in its one form: texts as a tuple, a file as a path under `root`."""
        if self.sort == "file" and value is not None:
            return root / value
        if self.sort == "texts":
            return (value,) if isinstance(value, str) else tuple(value)
        return value

    def _is_number(self, value: Any, types: type | tuple[type, ...]) -> bool:
        if isinstance(value, bool) or not isinstance(value, types):
            return False
        number = cast(float, value)
        return (
            not (isinstance(number, float) and not math.isfinite(number))
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
        )

    def _range(self) -> str:
        bounds = [
            *([f"of at least {self.low:g}"] if self.low is not None else []),
            *([f"above {self.above:g}"] if self.above is not None else []),
            *([f"of at most {self.high:g}"] if self.high is not None else []),
        ]
        return " " + " and ".join(bounds) if bounds else ""


def _is_texts(value: Any) -> bool:
    if isinstance(value, str):
        return value != ""
    return isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value)


def few_shot() -> dict[str, Setting]:
    """The settings of every kind that can show answered examples before an item."""
    return {
        "shots": Setting("integer", 0, "how many examples stand before each item", low=0),
        "examples": Setting("file", None, "where they come from: its first items"),
    }


def generation(*, max_new_tokens: int) -> dict[str, Setting]:
    """The settings of every kind that lets the model write."""
    return {
        "max_new_tokens": Setting(
            "integer", max_new_tokens, "where a completion ends at the latest", low=1, high=65536
        ),
        "stop": Setting("texts", (), "texts before the first of which a completion ends"),
        "temperature": Setting("number", 0.0, "0 is greedy; above it, sampling", low=0.0),
        "top_p": Setting(
            "number", 1.0, "sample from the likeliest tokens of this mass", above=0.0, high=1.0
        ),
        "seed": Setting("integer", 0, "for sampling; each prompt has its own stream", low=0),
    }
