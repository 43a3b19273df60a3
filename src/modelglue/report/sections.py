"""The page's sections after the final table: the models, the families, the making."""

from collections.abc import Sequence

from modelglue.report import candidates, explain, families, figures, heat_map, words
from modelglue.report.data import ModelFate, RunReport, SimilarityMap
from modelglue.report.markup import Child, Markup, element
from modelglue.report.parts import fold, score_cell, table, th


def fates(report: RunReport) -> Markup:
    """What became of each model."""
    tasks = list(dict.fromkeys(task for model in report.models for task in model.search))
    head = [
        th("Model"),
        th("Fate"),
        th("Family"),
        th("Coefficient"),
        *(th(task) for task in tasks),
        th("Parameters"),
        th("Why"),
    ]
    rows = [_fate(model, report, tasks) for model in words.by_family(report.models)]
    return table("What became of each model", head, element("tbody", rows))


def _fate(model: ModelFate, report: RunReport, tasks: Sequence[str]) -> Markup:
    share = candidates.share(report, model)
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
            share.text,
            figures.bar(share.part) if share.part is not None else None,
            class_="num score",
        ),
        *(score_cell(model.search.get(task)) for task in tasks),
        element("td", words.parameters(model.parameters), class_="num"),
        element("td", model.reason, class_="why"),
    )


def similarity_and_families(report: RunReport) -> Child:
    """Heat map, families, and why the rest are apart."""
    similarity = report.similarity
    head = [th("Model"), th("Family"), th("Nearest inside"), th("Nearest outside")]
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
        for near in families.neighbours(similarity)
    ]
    return [
        element("p", explain.threshold(report)),
        element(
            "div",
            element(
                "figure",
                element(
                    "div",
                    heat_map.heat_map(similarity),
                    class_="scroll",
                    tabindex=0,
                    role="group",
                    aria_label="Heat map",
                ),
                element("figcaption", heat_map.legend(similarity)),
            ),
            _families(similarity),
            class_="map",
        ),
        fold(
            "Each model's nearest, as a table",
            table("Each model's nearest", head, element("tbody", rows)),
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
        for summary in families.family_summaries(similarity)
    ]
    head = [th("Family"), th("Models"), th("Lowest inside"), th("Highest outside")]
    return table("Families", head, element("tbody", rows), class_="families")


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
    return fold(
        f"Why {len(reasons)} pair{'s' * (len(reasons) != 1)} cannot be merged",
        table(
            "Why pairs cannot be merged",
            [th("Model"), th("Model"), th("Reason")],
            element("tbody", rows),
        ),
        element("p", f"… and {rest} more in report.json.") if rest else None,
    )


def routing_table(report: RunReport) -> Markup:
    """Items of each task by expert."""
    routing = report.routing
    if routing is None:
        return element("p", explain.NO_ROUTING)
    head = [th("Task"), *(th(expert) for expert in routing.experts), th("Items")]
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
    return table("Items of each task by expert", head, element("tbody", rows))


def making(report: RunReport) -> Child:
    """Command, versions, tasks, inputs."""
    validated = any(task.validation_items for task in report.tasks)
    tasks = [
        element(
            "tr",
            element("th", element("span", task.name, class_="name"), scope="row"),
            element("td", task.kind),
            element("td", f"{task.search_items}", class_="num"),
            element("td", words.validation(task), class_="num") if validated else None,
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
    task_head = [
        th("Task"),
        th("Kind"),
        th("Search items"),
        *([th(words.VALIDATION)] if validated else []),
        th("Report items"),
    ]
    return [
        element("pre", element("code", report.command)) if report.command else None,
        element("p", f"Versions: {versions}.") if versions else None,
        table("Tasks", task_head, element("tbody", tasks)) if tasks else None,
        fold(
            "Fingerprints of the inputs",
            table("Inputs", [th("Model"), th("Fingerprint")], element("tbody", inputs)),
        )
        if inputs
        else None,
    ]
