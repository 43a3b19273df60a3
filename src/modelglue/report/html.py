"""The report as one page that needs nothing else: no script, no font, no network.

Everything is an `element`, which escapes whatever is not markup already; so a model may be called
`<script>` and still be only text.
"""

from collections.abc import Sequence
from importlib import resources

from modelglue.report import explain, figures, words
from modelglue.report.data import ModelFate, RunReport, SearchPath, SimilarityMap, TableRow
from modelglue.report.markup import Child, Markup, element, join


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
    sections = [
        _section("result", "Against the best single model", explain.RESULT, _forest(report)),
        _section("table", "Final table", explain.TABLE, _final_table(report)),
        _section("models", "What became of each model", explain.FATES, _fates(report)),
        _section("families", "Similarity and families", explain.SIMILARITY, _similarity(report)),
        _section("search", "The search", explain.SEARCH, _searches(report)),
        _section("routing", "Routing", explain.ROUTING, _routing(report)),
        _section("making", "How it was made", explain.MAKING, _making(report)),
    ]
    body = element("body", element("main", _top(report), *sections), _foot(report))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _top(report: RunReport) -> Markup:
    verdict = words.headline(report)
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
        _th("Contestant"),
        _th("Average"),
        _th("Difference, 95 % interval"),
        *(_th(task) for task in tasks),
        _th("Stored"),
        _th("Active"),
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
    return _table("Final table", head, *groups, class_="final")


def _final_row(
    row: TableRow, report: RunReport, tasks: Sequence[str], best: dict[str, float]
) -> Markup:
    note = element("span", row.note, class_="note") if row.note else None
    kind = None if row in words.other_singles(report) else _kind(row, report)
    return element(
        "tr",
        element("th", element("span", row.name, class_="name"), kind, note, scope="row"),
        _score_cell(row.average, best=row.kind != "oracle" and row.average == best.get("")),
        element("td", _signed(row), class_="num diff"),
        *(
            _score_cell(
                row.scores.get(task),
                best=row.kind != "oracle" and row.scores.get(task) == best.get(task),
            )
            for task in tasks
        ),
        element("td", words.parameters(row.stored), class_="num"),
        element("td", words.parameters(row.active), class_="num"),
        class_=row.kind,
    )


def _score_cell(value: float | None, *, best: bool = False) -> Markup:
    if value is None:
        return element("td", words.NONE, class_="num muted")
    number = element("b" if best else "span", words.score(value))
    return element("td", number, figures.bar(value), class_="num score")


def _fates(report: RunReport) -> Markup:
    tasks = list(dict.fromkeys(task for model in report.models for task in model.search))
    head = [
        _th("Model"),
        _th("Fate"),
        _th("Family"),
        _th("Coefficient"),
        *(_th(task) for task in tasks),
        _th("Parameters"),
        _th("Why"),
    ]
    rows = [_fate(model, report, tasks) for model in words.by_family(report.models)]
    return _table("What became of each model", head, element("tbody", rows))


def _fate(model: ModelFate, report: RunReport, tasks: Sequence[str]) -> Markup:
    weight = words.coefficient(report, model)
    return element(
        "tr",
        element(
            "th",
            element("span", model.name, class_="name"),
            element("span", model.architecture, class_="kind"),
            scope="row",
        ),
        element("td", words.FATES[model.fate], class_=f"fate {model.fate}"),
        element("td", words.family(model.family), class_="num"),
        element(
            "td",
            words.weight(weight),
            figures.bar(weight) if weight is not None else None,
            class_="num score",
        ),
        *(_score_cell(model.search.get(task)) for task in tasks),
        element("td", words.parameters(model.parameters), class_="num"),
        element("td", model.reason, class_="why"),
    )


def _similarity(report: RunReport) -> Child:
    similarity = report.similarity
    head = [_th("Model"), _th("Family"), _th("Nearest inside"), _th("Nearest outside")]
    rows = [
        element(
            "tr",
            element("th", element("span", near.name, class_="name"), scope="row"),
            element("td", words.family(near.family), class_="num"),
            *(
                element("td", f"{words.similar(pair[1])} {pair[0]}" if pair else words.NONE)
                for pair in (near.inside, near.outside)
            ),
        )
        for near in words.neighbours(similarity)
    ]
    return [
        element("p", explain.threshold(report)),
        element(
            "div",
            element(
                "figure",
                element(
                    "div",
                    figures.heat_map(similarity),
                    class_="scroll",
                    tabindex=0,
                    role="group",
                    aria_label="Heat map",
                ),
                element("figcaption", figures.legend(similarity)),
            ),
            _families(similarity),
            class_="map",
        ),
        _fold(
            "Each model's nearest, as a table",
            _table("Each model's nearest", head, element("tbody", rows)),
        ),
        _reasons(report),
    ]


def _families(similarity: SimilarityMap) -> Markup:
    rows = [
        element(
            "tr",
            element("th", f"{words.family(summary.family)}", scope="row"),
            element("td", ", ".join(summary.members), class_="members"),
            element("td", words.similar(summary.lowest_inside), class_="num"),
            element("td", words.similar(summary.highest_outside), class_="num"),
        )
        for summary in words.family_summaries(similarity)
    ]
    head = [_th("Family"), _th("Models"), _th("Lowest inside"), _th("Highest outside")]
    return _table("Families", head, element("tbody", rows), class_="families")


def _reasons(report: RunReport) -> Markup | None:
    reasons = report.similarity.reasons
    if not reasons:
        return None
    rows = [
        element(
            "tr",
            element("th", element("span", r.a, class_="name"), scope="row"),
            element("td", element("span", r.b, class_="name")),
            element("td", r.reason),
        )
        for r in reasons[: explain.MAX_REASONS]
    ]
    rest = len(reasons) - len(rows)
    return _fold(
        f"Why {len(reasons)} pair{'s' * (len(reasons) != 1)} cannot be merged",
        _table(
            "Why pairs cannot be merged",
            [_th("Model"), _th("Model"), _th("Reason")],
            element("tbody", rows),
        ),
        element("p", f"… and {rest} more in report.json.") if rest else None,
    )


def _searches(report: RunReport) -> Child:
    if not report.searches:
        return element("p", explain.no_searches(report))
    return [
        [
            element("h3", f"Family {words.family(family)}"),
            [_search(path) for path in paths],
        ]
        for family, paths in words.searches_by_family(report)
    ]


def _search(path: SearchPath) -> Markup:
    kept = [name for name, weight in path.coefficients.items() if weight]
    won = " ★ the winner" if path.winner else ""
    title = [
        element("b", words.strategy(path.strategy)),
        f" · {words.score(path.score)} in {path.trials} "
        f"trials · {len(kept)} model{'s' * (len(kept) != 1)} kept",
        element("span", won, class_="won") if won else None,
    ]
    formula = " + ".join(f"{words.weight(path.coefficients[name])} {name}" for name in kept)
    head = [
        _th("Step"),
        _th("Candidate"),
        _th("Mixture"),
        _th("Score"),
        _th("Gain"),
        _th("Outcome"),
        _th("Why"),
    ]
    rows = [
        element(
            "tr",
            element("td", f"{i + 1}", class_="num"),
            element("th", element("span", step.candidate, class_="name"), scope="row"),
            element("td", words.mixture(step.coefficient), class_="num"),
            element("td", words.score(step.score), class_="num"),
            element("td", words.gain(step), class_="num"),
            element(
                "td",
                words.outcome(step, i),
                class_=f"fate {'merged' if step.accepted else 'dropped'}",
            ),
            element("td", step.reason, class_="why"),
        )
        for i, step in enumerate(path.steps)
    ]
    return element(
        "details",
        element("summary", title),
        element("p", "Result: ", formula, class_="formula"),
        figures.steps(path),
        element("p", "● came in   × dropped   ▼ dropped, too low for the axis", class_="keys"),
        _table(f"Steps of {words.strategy(path.strategy)}", head, element("tbody", rows)),
        open="open" if path.winner else None,
    )


def _routing(report: RunReport) -> Markup:
    routing = report.routing
    if routing is None:
        return element("p", explain.NO_ROUTING)
    head = [_th("Task"), *(_th(expert) for expert in routing.experts), _th("Items")]
    rows = []
    for task, counts in zip(routing.tasks, routing.counts, strict=True):
        cells = []
        for count in counts:
            part = words.share(count, counts)
            cells.append(
                element(
                    "td",
                    f"{count}",
                    element("span", f" ({100 * part:.0f} %)", class_="muted"),
                    figures.bar(part),
                    class_="num score",
                )
            )
        name = element("th", element("span", task, class_="name"), scope="row")
        rows.append(element("tr", name, cells, element("td", f"{sum(counts)}", class_="num")))
    return _table("Items of each task by expert", head, element("tbody", rows))


def _making(report: RunReport) -> Child:
    tasks = [
        element(
            "tr",
            element("th", element("span", task.name, class_="name"), scope="row"),
            element("td", task.kind),
            element("td", f"{task.search_items}", class_="num"),
            element("td", f"{task.report_items}", class_="num"),
        )
        for task in report.tasks
    ]
    inputs = [
        element(
            "tr",
            element("th", element("span", i.name, class_="name"), scope="row"),
            element("td", element("code", i.fingerprint, class_="digest")),
        )
        for i in report.inputs
    ]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    task_head = [_th("Task"), _th("Kind"), _th("Search items"), _th("Report items")]
    return [
        element("pre", element("code", report.command)) if report.command else None,
        element("p", f"Versions: {versions}.") if versions else None,
        _table("Tasks", task_head, element("tbody", tasks)) if tasks else None,
        _fold(
            "Fingerprints of the inputs",
            _table("Inputs", [_th("Model"), _th("Fingerprint")], element("tbody", inputs)),
        )
        if inputs
        else None,
    ]


def _th(text: str) -> Markup:
    return element("th", element("span", text), scope="col")


def _table(
    caption: str, head: Sequence[Markup], *bodies: Child, class_: str | None = None
) -> Markup:
    """A table that scrolls sideways in its own box; the box can be reached by keyboard."""
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", head)),
        join(bodies),
        class_=class_,
    )
    return element("div", table, class_="scroll", tabindex=0, role="group", aria_label=caption)


def _fold(title: str, *content: Child) -> Markup:
    return element("details", element("summary", title), *content)
