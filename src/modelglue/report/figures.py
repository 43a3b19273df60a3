"""The figures of the page, as SVG written by hand.

Horizontal places are percentages wherever a figure has no text of its own to scale, so that lines
and marks stay crisp from a phone to a poster. Colours are classes that the style sheet fills for
light and dark; shape or text always says the same as the colour.
"""

import math
from collections.abc import Sequence

from modelglue.report import words
from modelglue.report.data import Difference, SearchPath, SearchStep
from modelglue.report.markup import Markup, element, join


def scale(differences: Sequence[Difference]) -> tuple[float, float, list[float]]:
    """(low, high, ticks) that hold all intervals and zero, as fractions."""
    ends = [end for d in differences for end in (d.low, d.high, d.mean) if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    room = max(0.06 * (high - low), 0.005)
    low, high = low - room, high + room
    return low, high, ticks(low, high, 7)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values between low and high, about as many as wanted.

    >>> ticks(0.0, 0.1)
    [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
    """
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def forest_track(
    difference: Difference | None,
    low: float,
    high: float,
    name: str,
    *,
    interval: str = "95 % interval",
) -> Markup:
    """One row of the forest plot: zero line, interval, mean. No difference marks the reference."""
    zero = _percent(0.0, low, high)
    parts = [element("line", x1=zero, x2=zero, y1=0, y2="100%", class_="zero")]
    if difference is None:
        parts.append(mark(zero, "M-4 -4h8v8h-8z", "reference"))
        spoken = f"{name}: the reference"
    elif not all(map(math.isfinite, (difference.mean, difference.low, difference.high))):
        spoken = f"{name}: no interval"
    else:
        tone = tone_of(difference)
        start, end = (_percent(x, low, high) for x in (difference.low, difference.high))
        parts.append(element("line", x1=start, x2=end, y1="50%", y2="50%", class_=f"ci {tone}"))
        for x in (start, end):
            parts.append(mark(x, "M0 -4v8", f"whisker {tone}"))
        parts.append(mark(_percent(difference.mean, low, high), "M0 -6L6 0L0 6L-6 0z", tone))
        spoken = (
            f"{name}: {words.points(difference.mean)} points, "
            f"{interval} {words.interval(difference)}"
        )
    return element("svg", parts, class_="track", role="img", aria_label=spoken)


def forest_axis(low: float, high: float, marks: Sequence[float]) -> Markup:
    """The scale under a forest plot."""
    parts: list[Markup] = []
    for value in marks:
        x = _percent(value, low, high)
        parts.append(element("line", x1=x, x2=x, y1=0, y2=5, class_="tick"))
        parts.append(element("text", _tick(value), x=x, y=19, text_anchor="middle"))
    return element("svg", parts, class_="axis", aria_hidden="true")


def _tick(value: float) -> str:
    return f"{100 * value:+.3g}".replace("-", words.MINUS) if value else "0"


def tone_of(difference: Difference) -> str:
    """gain, loss or unclear: where the interval lies."""
    return "gain" if difference.low > 0 else "loss" if difference.high < 0 else "unclear"


def bar(value: float) -> Markup:
    """A thin bar for a fraction; the number stands beside it."""
    length = min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0
    width = f"{100 * length:.1f}%"
    parts = [
        element("rect", width="100%", height="100%", class_="rail"),
        element("rect", width=width, height="100%", class_="fill"),
    ]
    return element("svg", parts, class_="bar", aria_hidden="true")


def steps(path: SearchPath) -> Markup:
    """A search's path: the line is the score that stands, marks are candidates."""
    shown = [step for step in path.steps if math.isfinite(step.score)]
    if not shown:
        return Markup("")
    low, high, marks = _score_range(shown)
    height = 230.0
    top, bottom = 14.0, height - 24

    def y(value: float) -> float:
        return bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - top)

    def x(position: float) -> str:
        return f"{8 + 90 * position / len(shown):.2f}%"

    parts: list[Markup] = []
    for value in marks:
        parts.append(element("line", x1=0, x2="100%", y1=y(value), y2=y(value), class_="grid"))
        parts.append(element("text", words.score(value), x=0, y=y(value) - 3, class_="scale"))
    standing = shown[0].incumbent
    for i, step in enumerate(shown):
        after = max(step.score, standing) if step.accepted else standing
        middle, here, there = x(i + 0.5), y(standing), y(after)
        if i:
            parts.append(element("line", x1=x(i), x2=middle, y1=here, y2=here, class_="path"))
        if not step.accepted:
            end = y(step.score)
            parts.append(element("line", x1=middle, x2=middle, y1=here, y2=end, class_="stem"))
        if there != here:
            parts.append(element("line", x1=middle, x2=middle, y1=here, y2=there, class_="path"))
        parts.append(element("line", x1=middle, x2=x(i + 1), y1=there, y2=there, class_="path"))
        standing = after
    # Marks over the line, whatever the order.
    for i, step in enumerate(shown):
        parts.append(_candidate(step, i, x(i + 0.5), y(step.score), below=step.score < low))
    parts += _step_labels(shown, [x(i + 0.5) for i in range(len(shown))], height - 6)
    accepted = sum(step.accepted for step in shown)
    spoken = (
        f"Search path of {words.strategy(path.strategy)}: from {words.score(shown[0].incumbent)} "
        f"to {words.score(standing)} in {len(shown)} steps, {accepted} accepted. "
        "The table below has the numbers."
    )
    return element(
        "svg", parts, class_="steps", role="img", aria_label=spoken, height=height, width="100%"
    )


def _step_labels(shown: Sequence[SearchStep], places: Sequence[str], y: float) -> list[Markup]:
    """Numbers of the steps, and the candidates' names where there is room for them."""
    every = max(1, math.ceil(len(shown) / 25))
    named = len(shown) <= 8
    return [
        element(
            "text",
            f"{i + 1}",
            element("tspan", f" {short(step.candidate, 15)}", class_="roomy") if named else None,
            x=place,
            y=y,
            text_anchor="middle",
        )
        for i, (step, place) in enumerate(zip(shown, places, strict=True))
        if i % every == 0
    ]


def _candidate(step: SearchStep, index: int, x: str, y: float, *, below: bool) -> Markup:
    title = element(
        "title", f"{step.candidate}: {words.score(step.score)}, {words.outcome(step, index)}"
    )
    if words.outcome(step, index) == words.START:
        return mark(x, "M-5 -5h10v10h-10z", "accepted", y=y, title=title)
    if step.accepted:
        return mark(
            x, "M0 -5.5A5.5 5.5 0 1 1 0 5.5A5.5 5.5 0 1 1 0 -5.5z", "accepted", y=y, title=title
        )
    if below:  # far under the axis: an arrow, with the number that the axis cannot show
        number = element("text", words.score(step.score), y=-9, text_anchor="middle")
        return mark(x, "M-5 -5h10L0 4z", "dropped off", y=y, title=title, extra=number)
    return mark(x, "M-4 -4L4 4M-4 4L4 -4", "dropped", y=y, title=title)


def _score_range(shown: Sequence[SearchStep]) -> tuple[float, float, list[float]]:
    """An axis around the path. A ruinous candidate must not flatten the gains of the others."""
    start = shown[0].incumbent if math.isfinite(shown[0].incumbent) else shown[0].score
    high = max([start, *(step.score for step in shown)])
    reach = max(high - start, 0.02)
    low = max(min([start, *(step.score for step in shown)]), start - 0.8 * reach)
    room = 0.1 * (high - low) or 0.01
    low, high = low - room, high + room
    return low, high, ticks(low, high, 4)


def short(name: str, most: int = 26) -> str:
    """A name cut in its middle: what tells models apart often stands at the end."""
    head = most // 2 - 3
    return name if len(name) <= most else f"{name[:head]}…{name[head + 1 - most :]}"


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * (value - low) / (high - low):.2f}%"


def mark(
    x: str,
    d: str,
    class_: str,
    *,
    y: float | str = "50%",
    title: Markup | None = None,
    extra: Markup | None = None,
) -> Markup:
    """A shape of fixed size at a place that may be a percentage."""
    shape = element("path", d=d, class_=f"mark {class_}")
    return element("svg", join([title, shape, extra]), x=x, y=y, overflow="visible")
