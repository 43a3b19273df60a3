"""HTML and SVG built of elements, so that text is escaped unless it already is markup."""

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is already HTML; everything else is escaped on its way into an element."""

    __slots__ = ()


Child = str | None | Iterable["Child"]

# Elements that have no end tag in HTML. SVG's are closed explicitly: both parsers accept that.
_VOID = frozenset({"meta", "br", "hr", "col", "wbr"})


def element(tag: str, *children: Child, **attributes: str | float | None) -> Markup:
    """An element; `class_` and `stroke_width` become class and stroke-width, None is left out.

    >>> element("td", "a < b", class_="num")
    '<td class="num">a &lt; b</td>'
    """
    head = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{head}>")
    return Markup(f"<{tag}{head}>{join(children)}</{tag}>")


def join(children: Child) -> Markup:
    """Children one after the other, escaped where they are not markup."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return Markup(escape(clean(children)))
    return Markup("".join(join(child) for child in children))


def clean(text: str) -> str:
    """Replace what no document or terminal should receive: controls, surrogates, text reversal.

    A model's folder may carry any name; an escape sequence in it must not reach a terminal.

    >>> clean("a\\x1b[31mb")
    'a�[31mb'
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if _unfit(character) else character for character in text
    )


def _unfit(character: str) -> bool:
    code = ord(character)
    return (
        (code < 0x20 and character not in "\t\n")
        or 0x7F <= code < 0xA0
        or 0x202A <= code <= 0x202E
        or 0x2066 <= code <= 0x2069
        or 0xD800 <= code < 0xE000
        or code & 0xFFFE == 0xFFFE
    )


def _text(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return clean(str(value))
