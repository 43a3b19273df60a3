"""An evolution in words: its generations as rows, a selection of them, what they add up to."""

import math
from collections.abc import Sequence

from modelglue.report import words
from modelglue.report.data import SearchGeneration, SearchPath

HEAD = (
    "Generation",
    "Best of it",
    "Best so far",
    "Step size",
    "Candidates",
    "Stopped",
    "Failed",
    "Items",
)
MOST = 12
"""Where a selection is shown, it has no more generations than this."""


def row(generation: SearchGeneration) -> list[str]:
    """The cells of a generation, in the order of `HEAD`."""
    standing = incumbent(generation)
    return [
        f"{generation.number + 1}",
        words.score(generation.best),
        words.NONE if standing is None else words.score(standing),
        step_size(generation.spread),
        f"{generation.candidates}",
        f"{generation.stopped}",
        f"{generation.failed}",
        f"{generation.items:,}",
    ]


def incumbent(generation: SearchGeneration) -> float | None:
    """The best mean so far on all items, None while no candidate has been scored on them."""
    standing = generation.incumbent
    return standing if math.isfinite(standing) else None


def step_size(spread: float) -> str:
    """How far candidates are drawn from the centre, where a search has such a size."""
    return f"{spread:.3g}" if math.isfinite(spread) and spread else words.NONE


def selection(
    generations: Sequence[SearchGeneration], most: int = MOST
) -> tuple[SearchGeneration, ...]:
    """The first, the last, those that raised the best so far, and some of the long waits between.

    Args:
        generations: all of them.
        most: at least 2; where more of them raised the best, those are thinned evenly.
    """
    if len(generations) <= most:
        return tuple(generations)
    rises = [i for i in range(1, len(generations)) if _rose(generations[i - 1], generations[i])]
    shown = sorted({0, *rises, len(generations) - 1})
    if len(shown) > most:
        shown = [shown[i * (len(shown) - 1) // (most - 1)] for i in range(most)]
    while len(shown) < most:
        at = max(range(1, len(shown)), key=lambda i: shown[i] - shown[i - 1])
        shown.insert(at, (shown[at - 1] + shown[at]) // 2)
    return tuple(generations[i] for i in shown)


def selected(path: SearchPath) -> str:
    """How many of the generations are shown, where it is not all of them."""
    count = len(path.generations)
    return f"{MOST} of {count} generations; all are in report.json" if count > MOST else ""


def summary(path: SearchPath) -> str:
    """What the generations of an evolution add up to."""
    generations = path.generations
    candidates = sum(generation.candidates for generation in generations)
    sizes = sorted({generation.candidates for generation in generations})
    each = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    stopped = sum(generation.stopped for generation in generations)
    failed = sum(generation.failed for generation in generations)
    count = "1 generation" if len(generations) == 1 else f"{len(generations)} generations"
    steps = step_sizes(path)
    return (
        f"{count} of {each} candidates, {candidates:,} in all: {stopped:,} stopped early, "
        f"{failed:,} could not be scored.{steps and f' Step size {steps}.'}"
    )


def step_sizes(path: SearchPath) -> str:
    """The first and the last; nothing for a search without."""
    if not any(generation.spread for generation in path.generations):
        return ""
    first, last = (step_size(path.generations[i].spread) for i in (0, -1))
    return first if first == last else f"{first} → {last}"


def _rose(before: SearchGeneration, after: SearchGeneration) -> bool:
    now, then = incumbent(after), incumbent(before)
    return now is not None and (then is None or now > then)
