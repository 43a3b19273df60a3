"""A question of a published dataset: an item for one of our kinds, and how to know it again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: its own in the split.
        record: what the kind needs.
        marks: each is enough to know the same question again in another split or dataset.
        opening: what the prompt begins with for all of them: a heading, solved examples.
    """

    id: str
    record: Mapping[str, Any]
    marks: frozenset[str]
    opening: str = ""


def mark(*parts: str) -> str:
    """A question's text, whatever its capitals and white space.

    >>> mark("What is  2 + 2?", "Four\\n") == mark("what is 2 + 2? ", "four")
    True
    """
    return "\0".join(" ".join(part.casefold().split()) for part in parts)
