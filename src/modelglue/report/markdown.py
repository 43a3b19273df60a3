"""The report as Markdown: the same words and numbers as the page, in tables."""

import re
from collections.abc import Iterable, Sequence

from modelglue.report import candidates, explain, families, generations, verdicts, words
from modelglue.report.candidates import Candidate
from modelglue.report.data import RunReport, SearchPath, TableRow
from modelglue.report.headline import headline
from modelglue.report.markup import clean

MAX_MATRIX = 24
"""Above this many models the similarity matrix is wider than anyone reads; the nearest remain."""


def render_markdown(report: RunReport) -> str:
    """The whole document."""
    verdict = headline(report)
    blocks = [
        f"# {text(report.title)}",
        f"**{text(verdict.short)}.** {text(verdict.sentence)}",
        bullets(f"{what}: {figure} ({remark})" for what, figure, remark in words.glance(report)),
        *(f"Note: {text(note)}" for note in report.notes),
        *_acceptance(report),
        "## Final table",
        f"{explain.TABLE} {explain.INTERVALS}",
        _final_table(report),
        "## What became of each model",
        explain.FATES,
        _fates(report),
        "## Similarity and families",
        f"{explain.SIMILARITY} {explain.threshold(report)}",
        *_similarity(report),
        "## The search",
        explain.search(report),
        *_searches(report),
        "## Routing",
        explain.ROUTING,
        _routing(report),
        "## How it was made",
        explain.MAKING,
        *_making(report),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def text(value: str) -> str:
    """Escape what Markdown would read as its own: a model's name is only a name.

    >>> text("a|b_c <i> *d*")
    'a\\\\|b_c \\\\<i\\\\> \\\\*d\\\\*'
    """
    flat = re.sub(r"\s+", " ", clean(value))
    flat = re.sub(r"([\\`*|<>\[\]~&#])", r"\\\1", flat)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", flat)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; every cell is escaped."""
    lines = [head, *rows]
    body = [f"| {' | '.join(map(text, line))} |" for line in lines]
    return "\n".join([body[0], "|" + " --- |" * len(head), *body[1:]])


def bullets(items: Iterable[str]) -> str:
    """A list; every item is escaped."""
    return "\n".join(f"- {text(item)}" for item in items)


def fenced(value: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max(map(len, re.findall("`+", value)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{clean(value)}\n{fence}"


def _final_table(report: RunReport) -> str:
    tasks = words.task_names(report)
    head = ["Contestant", "What", "Average", "Difference (95 % interval)", *tasks]

    def line(row: TableRow) -> list[str]:
        scores = [_score(row.scores.get(task)) for task in tasks]
        costs = [words.parameters(row.stored), words.parameters(row.active)]
        what = words.label(row, report)
        return [
            row.name,
            what,
            words.score(row.average),
            words.difference(row),
            *scores,
            *costs,
            row.note,
        ]

    rows = words.contestants(report) + words.other_singles(report)
    return table([*head, "Stored", "Active", "Note"], map(line, rows))


def _fates(report: RunReport) -> str:
    tasks = list(dict.fromkeys(task for model in report.models for task in model.search))
    head = ["Model", "Architecture", "Fate", "Family", "Coefficient", *tasks, "Parameters", "Why"]
    rows = [
        [
            model.name,
            model.architecture,
            words.FATES[model.fate],
            words.family(model.family),
            candidates.share(report, model).text,
            *(_score(model.search.get(task)) for task in tasks),
            words.parameters(model.parameters),
            model.reason,
        ]
        for model in words.by_family(report.models)
    ]
    return table(head, rows)


def _similarity(report: RunReport) -> list[str]:
    similarity = report.similarity
    blocks = [
        table(
            ["Family", "Models", "Lowest inside", "Highest outside"],
            [
                [
                    words.family(summary.family),
                    ", ".join(summary.members),
                    words.similar(summary.lowest_inside),
                    words.similar(summary.highest_outside),
                ]
                for summary in families.family_summaries(similarity)
            ],
        )
    ]
    order = families.similarity_order(similarity)
    if len(order) <= MAX_MATRIX:
        rows = [
            [f"{row + 1} {similarity.names[i]}"]
            + [words.similar(families.cell(similarity, i, j)) for j in order]
            for row, i in enumerate(order)
        ]
        blocks.append(table(["Model", *(f"{i + 1}" for i in range(len(order)))], rows))
    blocks.append(
        table(
            ["Model", "Family", "Nearest inside", "Nearest outside"],
            [
                [near.name, words.family(near.family), _near(near.inside), _near(near.outside)]
                for near in families.neighbours(similarity)
            ],
        )
    )
    if similarity.reasons:
        shown = similarity.reasons[: explain.MAX_REASONS]
        blocks.append(
            table(["Model", "Model", "Why not merged"], [[r.a, r.b, r.reason] for r in shown])
        )
        if len(shown) < len(similarity.reasons):
            blocks.append(f"… and {len(similarity.reasons) - len(shown)} more in report.json.")
    return blocks


def _near(pair: tuple[str, float] | None) -> str:
    return f"{words.similar(pair[1])} {pair[0]}" if pair else words.NONE


def _searches(report: RunReport) -> list[str]:
    if not report.searches:
        return [explain.no_searches(report)]
    return [
        block
        for _, paths in words.searches_by_family(report)
        for path in paths
        for block in _search(path, won=candidates.won(path, refused=verdicts.refused(report, path)))
    ]


def _search(path: SearchPath, *, won: str) -> list[str]:
    title = f"### Family {words.family(path.family)}: {text(words.strategy(path.strategy))}"
    summary = candidates.summary(path) + (f", {won.lstrip('★✕ ')}" if won else "")
    formula = candidates.formula(path)
    return [
        title,
        f"{text(summary)}.",
        f"Result: {text(formula)}." if formula else "",
        *_numbers(candidates.read(path)),
        _steps(path) if path.steps else "",
        *(_generations(path) if path.generations else ()),
    ]


def _steps(path: SearchPath) -> str:
    head = ["Step", "Candidate", "Mixture", "Score", "Gain", "Outcome", "Why"]
    rows = [
        [
            f"{i + 1}",
            step.candidate,
            words.mixture(step.coefficient),
            words.score(step.score),
            words.gain(step),
            words.outcome(step, i),
            step.reason,
        ]
        for i, step in enumerate(path.steps)
    ]
    return table(head, rows)


def _generations(path: SearchPath) -> list[str]:
    shown = generations.selected(path)
    rows = map(generations.row, generations.selection(path.generations))
    return [
        generations.summary(path),
        table(generations.HEAD, rows),
        f"{shown}." if shown else "",
    ]


def _numbers(candidate: Candidate) -> list[str]:
    """What is more than a weight for each model."""
    grid = candidate.grid
    blocks = []
    if grid.groups:
        rows = [
            [group, *map(words.weight, cells)]
            for group, cells in zip(grid.groups, grid.cells, strict=True)
        ]
        blocks.append(table(["Group", *map(candidates.label, grid.columns)], rows))
    if candidate.runs:
        runs = [[r.places, r.model, r.layers, candidates.scales(r)] for r in candidate.runs]
        blocks.append(table(candidates.RUN_HEAD, runs))
    if candidate.parameters:
        blocks.append(bullets(f"{n}: {words.weight(v)}" for n, v in candidate.parameters.items()))
    return blocks


def _acceptance(report: RunReport) -> list[str]:
    if not verdicts.any_told(report):
        return []
    blocks = [f"## {explain.ACCEPTED}", explain.ACCEPTANCE]
    for test in report.acceptance:
        rows = [[one.rival, *verdicts.evidence(one)] for one in test.comparisons]
        blocks += [
            f"### {text(verdicts.title(test, report))}: {verdicts.mark(test)}",
            f"**{text(verdicts.said(test))}**",
            table(verdicts.HEAD, rows) if rows else "",
            text(verdicts.terms(test)),
        ]
    for one in verdicts.untested(report):
        blocks += [f"### {text(one.title)}: {verdicts.UNTESTED}", f"**{text(one.said)}**"]
    return blocks


def _routing(report: RunReport) -> str:
    routing = report.routing
    if routing is None:
        return explain.NO_ROUTING
    rows = [
        [task, *(f"{n} ({100 * words.share(n, counts):.0f} %)" for n in counts), f"{sum(counts)}"]
        for task, counts in zip(routing.tasks, routing.counts, strict=True)
    ]
    return table(["Task", *routing.experts, "Items"], rows)


def _making(report: RunReport) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    took = f", {words.duration(report.seconds)}" if report.seconds is not None else ""
    validated = any(task.validation_items for task in report.tasks)
    rows = [
        [
            task.name,
            task.kind,
            f"{task.search_items}",
            *([words.validation(task)] if validated else []),
            f"{task.report_items}",
        ]
        for task in report.tasks
    ]
    extra = [words.VALIDATION] if validated else []
    return [
        fenced(report.command) if report.command else "",
        f"Versions: {text(versions)}." if versions else "",
        table(["Task", "Kind", "Search items", *extra, "Report items"], rows) if rows else "",
        table(["Model", "Fingerprint"], [[i.name, i.fingerprint] for i in report.inputs])
        if report.inputs
        else "",
        f"modelglue {text(report.modelglue)}{took}",
    ]


def _score(value: float | None) -> str:
    return words.NONE if value is None else words.score(value)
