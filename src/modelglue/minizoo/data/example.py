"""What the generators make, and how one is told to which split it belongs."""

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "dev", "search", "report"]

# Shares of the maths problems and programs; facts have shares of their own (see `knowledge`).
_SHARES: tuple[tuple[Split, int], ...] = (("train", 60), ("dev", 5), ("search", 10), ("report", 25))


@dataclass(frozen=True)
class Document:
    """A text to train on; the loss weighs the completion, a text without prompt wholly."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Example:
    """A question with its right answer, and the fields that a task file needs to score it."""

    prompt: str
    completion: str
    group: str
    fields: dict[str, Any] = field(default_factory=dict)


def stream(*names: object) -> random.Random:
    """A random stream of its own for every purpose.

    >>> stream(0, "maths").random() == stream(0, "maths").random()
    True
    """
    return random.Random("/".join(str(name) for name in names))


def split_of(identity: str) -> Split:
    """The split that a problem belongs to, by a hash of what it asks, not of its wording."""
    place = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big") % 100
    for split, share in _SHARES:
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares sum to 100")
