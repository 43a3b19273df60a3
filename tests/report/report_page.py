"""A report's page, taken apart again."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from report_sample import make_evolved_report, make_report

from modelglue.report.data import (
    RunReport,
    SimilarityMap,
)

ATTACK = (
    "\"><script>alert(1)</script><img src=x onerror='y'></title></style></svg>-->]]>"
    "&lt;b&gt; {x} url(http://evil.example) \x1b[31m\x00\u202e|\ud800"
)
VOID = {"meta"}


class Page(HTMLParser):
    """Tags with their attributes in order, open tags, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def with_text(value: Any, text: str, key: str = "") -> Any:
    """A report's JSON with every text field and every key of a free mapping set to `text`."""
    if isinstance(value, dict):
        free = key in ("scores", "search", "coefficients", "versions")
        items = list(value.items())[: 1 if free else None]
        return {(text if free else k): with_text(v, text, k) for k, v in items}
    if isinstance(value, list):
        return [with_text(item, text, key) for item in value]
    fixed = key == "fate" or value in (
        "single",
        "uniform",
        "heuristic",
        "mixture",
        "glued",
        "oracle",
    )
    return text if isinstance(value, str) and not fixed else value


def body(page: str) -> ET.Element:
    """The page's body, which is well-formed XML too: figures are drawn by the XML rules."""
    return ET.fromstring(page[page.index("<body") : page.index("</html>")])


def lonely() -> RunReport:
    """Two models that have nothing in common, one task, and nothing that is optional."""
    report = make_report(2, families=2, tasks=1)
    matrix = ((1.0, None), (None, 1.0))
    similarity = SimilarityMap(("a", "b"), matrix, 0.95, (("a",), ("b",)))
    return replace(
        report, searches=(), routing=None, seconds=None, notes=(), similarity=similarity, command=""
    )


REPORTS = {
    "eight models": lambda: make_report(8),
    "two models, one family, one task": lambda: make_report(2, families=1, tasks=1),
    "nothing in common": lonely,
    "evolutions": make_evolved_report,
    "no merge accepted": lambda: make_evolved_report(accepted=False),
    "a hundred models": lambda: make_report(100, families=9, tasks=6),
    "long names of evolutions": lambda: RunReport.from_json(
        with_text(make_evolved_report().to_json(), "name-" * 60)
    ),
    "long names": lambda: RunReport.from_json(with_text(make_report(5).to_json(), "name-" * 60)),
    "empty": lambda: RunReport(
        "", "0", None, (), SimilarityMap((), (), 0.95, ()), (), None, (), ()
    ),
}


def table_of(root: ET.Element, caption: str) -> list[list[str]]:
    """The rows of the table of that caption, its header first."""
    table = next(t for t in root.iter("table") if t.findtext("caption") == caption)
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
