"""Pieces of HTML that several sections use."""

from collections.abc import Sequence

from modelglue.report import figures, words
from modelglue.report.markup import Child, Markup, element, join


def th(text: str) -> Markup:
    """A column's heading."""
    return element("th", element("span", text), scope="col")


def table(
    caption: str, head: Sequence[Markup], *bodies: Child, class_: str | None = None
) -> Markup:
    """A table that scrolls sideways in its own box; the box can be reached by keyboard."""
    inner = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", head)),
        join(bodies),
        class_=class_,
    )
    return element("div", inner, class_="scroll", tabindex=0, role="group", aria_label=caption)


def fold(title: str, *content: Child) -> Markup:
    """What opens on a click, without a script."""
    return element("details", element("summary", title), *content)


def score_cell(value: float | None, *, best: bool = False) -> Markup:
    """A score with its bar."""
    if value is None:
        return element("td", words.NONE, class_="num muted")
    number = element("b" if best else "span", words.score(value))
    return element("td", number, figures.bar(value), class_="num score")
