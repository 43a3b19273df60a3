"""The way of an evolution as a figure: each generation's best, what stands, and the step size."""

import math
from collections.abc import Callable

from modelglue.report import words
from modelglue.report.data import SearchGeneration, SearchPath
from modelglue.report.figures import mark, ticks
from modelglue.report.generations import incumbent, step_sizes
from modelglue.report.markup import Markup, element

_TOP, _BOTTOM, _BASE, _HEIGHT = 14.0, 186.0, 236.0, 262.0
_MOST_SPREAD = 28.0
_LABELS = 10

Place = Callable[[float], str]
"""Generations from the left, a fraction of one too → a place as a percentage."""


def evolution(path: SearchPath) -> Markup:
    """A dot is a generation's best, the line the best so far on all items, grey the step size."""
    shown = path.generations
    if not shown:
        return Markup("")
    low, high = _score_range(path)

    def x(position: float) -> str:
        return f"{8 + 91 * position / len(shown):.2f}%"

    def y(value: float) -> float:
        return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)

    parts: list[Markup] = []
    for value in ticks(low, high, 4):
        parts.append(element("line", x1=0, x2="100%", y1=y(value), y2=y(value), class_="grid"))
        parts.append(element("text", words.score(value), x=0, y=y(value) - 3, class_="scale"))
    parts += _spreads(path, x)
    parts += _standing(path, x, y)
    for i, generation in enumerate(shown):
        parts.append(_best(generation, x(i + 0.5), y, many=len(shown) > 60))
    every = max(1, math.ceil(len(shown) / _LABELS))
    for i in range(0, len(shown), every):
        number = f"{shown[i].number + 1}"
        parts.append(element("text", number, x=x(i + 0.5), y=_HEIGHT - 6, text_anchor="middle"))
    return element(
        "svg",
        parts,
        class_="steps",
        role="img",
        aria_label=_spoken(path),
        height=_HEIGHT,
        width="100%",
    )


def _score_range(path: SearchPath) -> tuple[float, float]:
    standing = [incumbent(generation) for generation in path.generations]
    found = [generation.best for generation in path.generations if math.isfinite(generation.best)]
    values = found + [value for value in standing if value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    room = max(0.1 * (high - low), 0.005)
    return low - room, high + room


def _spreads(path: SearchPath, x: Place) -> list[Markup]:
    """A bar a generation in a band of its own, and the first and last number."""
    most = max((g.spread for g in path.generations if math.isfinite(g.spread)), default=0.0)
    width = f"{91 / len(path.generations) * 0.8:.3f}%"
    bars = [
        element(
            "rect",
            x=x(i + 0.1),
            y=_BASE - _MOST_SPREAD * generation.spread / most,
            width=width,
            height=_MOST_SPREAD * generation.spread / most,
            class_="spread",
        )
        for i, generation in enumerate(path.generations)
        if most > 0 and math.isfinite(generation.spread) and generation.spread > 0
    ]
    if not (steps := step_sizes(path)):
        return bars
    title = f"step size {steps}"
    return [*bars, element("text", title, x=0, y=_BASE - _MOST_SPREAD - 5, class_="scale")]


def _standing(path: SearchPath, x: Place, y: Callable[[float], float]) -> list[Markup]:
    """One level line for each best so far, as long as it stood."""
    lines: list[Markup] = []
    standing = list(map(incumbent, path.generations))
    first, before = 0, None
    for i, now in enumerate([*standing[1:], None], start=1):
        held = standing[first]
        if now == held:
            continue
        if held is not None:
            level = y(held)
            if before is not None:
                at, from_ = x(first), y(before)
                lines.append(element("line", x1=at, x2=at, y1=from_, y2=level, class_="path"))
            lines.append(element("line", x1=x(first), x2=x(i), y1=level, y2=level, class_="path"))
        first, before = i, held
    return lines


def _best(
    generation: SearchGeneration, x: str, y: Callable[[float], float], *, many: bool
) -> Markup:
    title = element("title", _told(generation))
    if not math.isfinite(generation.best):
        return mark(x, "M-4 -4L4 4M-4 4L4 -4", "dropped", y=_BOTTOM - 6, title=title)
    size = 2 if many else 4
    circle = f"M0 -{size}A{size} {size} 0 1 1 0 {size}A{size} {size} 0 1 1 0 -{size}z"
    return mark(x, circle, "best small" if many else "best", y=y(generation.best), title=title)


def _told(generation: SearchGeneration) -> str:
    counts = (f"{generation.stopped} stopped early", f"{generation.failed} could not be scored")
    best = f"best {words.score(generation.best)}"
    return ", ".join([f"Generation {generation.number + 1}: {best}", *counts])


def _spoken(path: SearchPath) -> str:
    standing = [incumbent(generation) for generation in path.generations]
    reached = [words.score(value) for value in standing if value is not None]
    way = f"from {reached[0]} to {reached[-1]}" if reached else "no candidate was scored in full"
    steps = step_sizes(path)
    return (
        f"Evolution by {words.strategy(path.strategy)}: {way} in {len(path.generations)} "
        f"generations{steps and f', step size {steps}'}. The table below has the numbers."
    )
