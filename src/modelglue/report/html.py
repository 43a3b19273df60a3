"""The report as one page that needs nothing else: no script, no font, no network.

Everything is an `element`, which escapes whatever is not markup already; so a model may be called
`<script>` and still be only text.
"""

from collections.abc import Sequence
from importlib import resources

from modelglue.report import explain, figures, sections, verdicts, words
from modelglue.report.acceptance import acceptance
from modelglue.report.data import RunReport, TableRow
from modelglue.report.headline import headline
from modelglue.report.markup import Child, Markup, element
from modelglue.report.parts import score_cell, table, th
from modelglue.report.searches import searches


def render_html(report: RunReport) -> str:
    """The whole page."""
    style = resources.files("modelglue.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"modelglue {report.modelglue}"),
        element("title", report.title),
        element("style", Markup(style)),
    )
    content = [
        _section(
            "result",
            "Against the best single model",
            f"{explain.RESULT} {explain.INTERVALS}",
            _forest(report),
        ),
        _section("acceptance", explain.ACCEPTED, explain.ACCEPTANCE, acceptance(report))
        if verdicts.any_told(report)
        else None,
        _section(
            "table", "Final table", f"{explain.TABLE} {explain.TABLE_BOLD}", _final_table(report)
        ),
        _section("models", "What became of each model", explain.FATES, sections.fates(report)),
        _section(
            "families",
            "Similarity and families",
            f"{explain.SIMILARITY} {explain.FRAMES}",
            sections.similarity_and_families(report),
        ),
        _section("search", "The search", explain.search(report), searches(report)),
        _section("routing", "Routing", explain.ROUTING, sections.routing_table(report)),
        _section("making", "How it was made", explain.MAKING, sections.making(report)),
    ]
    body = element("body", element("main", _top(report), *content), _foot(report))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _top(report: RunReport) -> Markup:
    verdict = headline(report)
    sign = {"gain": "▲", "loss": "▼", "unclear": "◆", "unknown": "○"}[verdict.verdict]
    facts = [
        element(
            "div",
            element("dt", what),
            element("dd", element("b", figure), element("span", remark)),
        )
        for what, figure, remark in words.glance(report)
    ]
    return element(
        "header",
        element("p", report.title, class_="kicker"),
        element(
            "h1",
            element("span", sign, class_="sign", aria_hidden="true"),
            f" {verdict.short}",
            class_=verdict.verdict,
        ),
        element("p", verdict.sentence, class_="lead"),
        element("dl", facts, class_="glance"),
        _notes(report),
    )


def _notes(report: RunReport) -> Markup | None:
    if not report.notes:
        return None
    items = [element("li", note) for note in report.notes]
    return element("aside", element("ul", items), class_="notes", aria_label="Notes")


def _foot(report: RunReport) -> Markup:
    took = f", {words.duration(report.seconds)}" if report.seconds is not None else ""
    return element("footer", f"modelglue {report.modelglue}{took}")


def _section(name: str, title: str, explanation: str, *content: Child) -> Markup:
    heading = element("h2", title, id=f"{name}-title")
    text = element("p", explanation, class_="explain")
    return element("section", heading, text, *content, id=name, aria_labelledby=f"{name}-title")


def _forest(report: RunReport) -> Markup:
    rows = words.contestants(report)
    if not rows:
        return element("p", "The table is empty.")
    low, high, marks = figures.scale([row.difference for row in rows if row.difference])
    lines = [
        element(
            "li",
            element(
                "div",
                element("b", row.name),
                _kind(row, report),
                class_="who",
            ),
            figures.forest_track(row.difference, low, high, row.name),
            element("div", _signed(row), class_="value"),
            class_=row.kind,
        )
        for row in rows
    ]
    axis = element("div", figures.forest_axis(low, high, marks), class_="axis-row")
    return element("div", element("ul", lines), axis, class_="forest")


def _signed(row: TableRow) -> Child:
    if row.difference is None:
        return element("span", "reference" if row.kind == "single" else words.NONE, class_="muted")
    tone = figures.tone_of(row.difference)
    sign = element("span", {"gain": "▲", "loss": "▼", "unclear": ""}[tone], class_="sign")
    return [
        element("b", sign, words.points(row.difference.mean), class_=tone),
        " ",
        element("span", f"({words.interval(row.difference)})", class_="muted nowrap"),
    ]


def _kind(row: TableRow, report: RunReport) -> Markup | None:
    """What a row is, unless its name says so already."""
    text = words.label(row, report)
    return None if text.lower() in row.name.lower() else element("span", text, class_="kind")


def _final_table(report: RunReport) -> Markup:
    tasks = words.task_names(report)
    best = words.best_scores(report)
    head = [
        th("Contestant"),
        th("Average"),
        th("Difference, 95 % interval"),
        *(th(task) for task in tasks),
        th("Stored"),
        th("Active"),
    ]
    groups = [
        element(
            "tbody", [_final_row(row, report, tasks, best) for row in words.contestants(report)]
        )
    ]
    others = words.other_singles(report)
    if others:
        title = element("th", "Every other single model", colspan=len(head), scope="rowgroup")
        rows = [_final_row(row, report, tasks, best) for row in others]
        groups.append(element("tbody", element("tr", title, class_="group"), rows))
    return table("Final table", head, *groups, class_="final")


def _final_row(
    row: TableRow, report: RunReport, tasks: Sequence[str], best: dict[str, float]
) -> Markup:
    note = element("span", row.note, class_="note") if row.note else None
    kind = None if row in words.other_singles(report) else _kind(row, report)
    return element(
        "tr",
        element("th", element("span", row.name, class_="name"), kind, note, scope="row"),
        score_cell(row.average, best=row.kind != "oracle" and row.average == best.get("")),
        element("td", _signed(row), class_="num diff"),
        *(
            score_cell(
                row.scores.get(task),
                best=row.kind != "oracle" and row.scores.get(task) == best.get(task),
            )
            for task in tasks
        ),
        element("td", words.parameters(row.stored), class_="num"),
        element("td", words.parameters(row.active), class_="num"),
        class_=row.kind,
    )
