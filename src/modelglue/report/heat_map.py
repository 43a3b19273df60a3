"""The similarity heat map, as SVG written by hand."""

import math
from collections.abc import Sequence

from modelglue.report import families, words
from modelglue.report.data import SimilarityMap
from modelglue.report.figures import short
from modelglue.report.markup import Markup, element

BUCKETS = 4  # on either side of the threshold


def heat_map(similarity: SimilarityMap) -> Markup:
    """Similarities of all pairs, families framed on the diagonal."""
    order = families.similarity_order(similarity)
    n = len(order)
    if n == 0:
        return Markup("")
    size = next(
        px for most, px in ((8, 46), (14, 38), (24, 28), (40, 18), (64, 14), (n, 9.5)) if n <= most
    )
    font = min(12.5, size * 0.86)
    names = [short(similarity.names[i]) for i in order]
    gutter = 10 + 0.62 * font * len(f"{n}")
    left = gutter + 8 + 0.56 * font * max(map(len, names))
    top = 2 * font + 6
    values = [[families.cell(similarity, i, j) for j in order] for i in order]
    edges = bucket_edges(similarity)

    parts: list[Markup] = _cells(values, edges, size, left, top)
    if size >= 28:
        parts += _numbers(values, edges, size, left, top)
    for row, name in enumerate(names):
        middle = top + (row + 0.5) * size + 0.35 * font
        full = element("title", similarity.names[order[row]])
        right: dict[str, str | float] = {"y": middle, "text_anchor": "end", "font_size": font}
        parts.append(element("text", full, name, x=left - gutter - 4, **right))
        parts.append(element("text", f"{row + 1}", x=left - 7, class_="count", **right))
        # Columns carry numbers alone; where cells are small, every fifth and the first.
        if size >= 18 or row == 0 or (row + 1) % 5 == 0:
            parts.append(
                element(
                    "text",
                    f"{row + 1}",
                    x=left + (row + 0.5) * size,
                    y=top - 6,
                    text_anchor="middle",
                    font_size=font,
                    class_="count",
                )
            )
    parts += _frames(similarity, size, left, top)
    width, height = left + n * size + 4, top + n * size + 4
    spoken = (
        f"Similarity of {n} models in {len(similarity.families)} families. "
        "The table after it names each model's nearest."
    )
    return element(
        "svg",
        parts,
        class_="heat",
        role="img",
        aria_label=spoken,
        viewBox=f"0 0 {width:.1f} {height:.1f}",
        width=width,
        height=height,
    )


def legend(similarity: SimilarityMap) -> Markup:
    """The colours of the heat map with their edges."""
    edges = [*bucket_edges(similarity), 1.0]
    items: list[Markup] = []
    for k in range(2 * BUCKETS):
        at_threshold = k == BUCKETS
        items.append(
            element(
                "li",
                element("i", class_=f"s{k}", aria_hidden="true"),
                element("span", f"{edges[k]:.2f}" + (" threshold" if at_threshold else "")),
                class_="cut" if at_threshold else None,
            )
        )
    items.append(element("li", element("i", "×", class_="none"), element("span", "not comparable")))
    return element("ul", items, class_="legend", aria_label="Colours of the heat map")


def bucket_edges(similarity: SimilarityMap) -> list[float]:
    """Lower edges of the colours: half of them below the threshold, half from it up to 1."""
    n = len(similarity.names)
    pairs = [
        value
        for i in range(n)
        for j in range(n)
        if i != j and (value := families.cell(similarity, i, j)) is not None
    ]
    cut = min(similarity.threshold, 1.0)
    lowest = min([*pairs, cut - 0.04])
    lower = [lowest + (cut - lowest) * k / BUCKETS for k in range(BUCKETS)]
    return [*lower, *(cut + (1.0 - cut) * k / BUCKETS for k in range(BUCKETS))]


def bucket(value: float, edges: Sequence[float]) -> int:
    """The colour of a value; exactly at the threshold is above it."""
    return max((k for k, edge in enumerate(edges) if value >= edge), default=0)


def _cells(
    values: Sequence[Sequence[float | None]],
    edges: Sequence[float],
    size: float,
    left: float,
    top: float,
) -> list[Markup]:
    """One path a colour: ten thousand rectangles would make the page heavy."""
    paths: dict[str, list[str]] = {}
    gap = 1 if size > 10 else 0.5
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            x, y = left + column * size, top + row * size
            name = "none" if value is None else f"s{bucket(value, edges)}"
            side = size - gap
            paths.setdefault(name, []).append(f"M{x:.1f} {y:.1f}h{side:g}v{side:g}h-{side:g}z")
            if value is None:
                a, b = 0.3 * size, 0.4 * size
                cross = f"M{x + a:.1f} {y + a:.1f}l{b:.1f} {b:.1f}m0 -{b:.1f}l-{b:.1f} {b:.1f}"
                paths.setdefault("cross", []).append(cross)
    return [
        element("path", d="".join(d), class_=name)
        for name, d in sorted(paths.items(), reverse=True)
    ]


def _numbers(
    values: Sequence[Sequence[float | None]],
    edges: Sequence[float],
    size: float,
    left: float,
    top: float,
) -> list[Markup]:
    font = 12 if size >= 38 else 10
    return [
        element(
            "text",
            _two_digits(value),
            x=left + (column + 0.5) * size,
            y=top + (row + 0.5) * size + 0.33 * font,
            text_anchor="middle",
            font_size=font,
            class_=f"t{bucket(value, edges)}",
        )
        for row, line in enumerate(values)
        for column, value in enumerate(line)
        if value is not None
    ]


def _frames(similarity: SimilarityMap, size: float, left: float, top: float) -> list[Markup]:
    known = set(similarity.names)
    frames: list[Markup] = []
    start = 0
    for index, members in enumerate(similarity.families):
        count = len(known & set(members))
        if count == 0:
            continue
        x, y, side = left + start * size - 1, top + start * size - 1, count * size + 1
        title = element("title", f"Family {index + 1}")
        frames.append(
            element("rect", title, x=x, y=y, width=side, height=side, class_="frame", rx=2)
        )
        start += count
    return frames


def _two_digits(value: float) -> str:
    # Rounding up would print 1.00 for what is not the same, or .95 for what is below it.
    cut = math.floor(value * 100 + 1e-9) / 100
    return "1" if cut == 1 else f"{cut:.2f}".replace("0.", ".", 1).replace("-", words.MINUS)
