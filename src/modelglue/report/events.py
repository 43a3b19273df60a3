"""What a run tells of itself while it works; who shows it, and how, is not decided here."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """A piece of work ends or begins.

    Attributes:
        stage: the stage under way.
        text: what is being done, in words.
        done, total: pieces of work of this stage that stand, and about how many there will be.
        best: the best mean score so far, where the stage has one.
    """

    stage: str
    text: str = ""
    done: int = 0
    total: int = 0
    best: float | None = None


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that shows nothing."""
