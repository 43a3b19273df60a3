"""The page's section on the searches: each one's way, and the numbers that it came to."""

import math

from modelglue.report import candidates, explain, figures, generations, verdicts, words
from modelglue.report.candidates import Candidate, Grid
from modelglue.report.data import RunReport, SearchPath
from modelglue.report.evolution_figure import evolution
from modelglue.report.markup import Child, Markup, element
from modelglue.report.parts import fold, table, th

STEPS_KEYS = "■ start   ● came in   × dropped   ▼ dropped, too low for the axis"
# A sign must not be parted from its meaning where the line breaks.
EVOLUTION_KEYS = "   ".join(
    f"{sign}\N{NO-BREAK SPACE}{meaning}"
    for sign, meaning in (
        ("●", "best of a generation"),
        ("━", "best so far on all items"),
        ("×", "none could be scored"),
    )
)


def searches(report: RunReport) -> Child:
    """Each search's path, the winners open."""
    if not report.searches:
        return element("p", explain.no_searches(report))
    return [
        [
            element("h3", f"Family {words.family(family)}"),
            [_search(path, refused=verdicts.refused(report, path)) for path in paths],
        ]
        for family, paths in words.searches_by_family(report)
    ]


def _search(path: SearchPath, *, refused: bool) -> Markup:
    won = candidates.won(path, refused=refused)
    title = [
        element("b", words.strategy(path.strategy)),
        f" · {candidates.summary(path)}",
        element("span", f" {won}", class_="unclear" if refused else "won") if won else None,
    ]
    formula = candidates.formula(path)
    return element(
        "details",
        element("summary", title),
        element("p", "Result: ", formula, class_="formula") if formula else None,
        element("div", _numbers(candidates.read(path)), class_="numbers"),
        _steps(path) if path.steps else None,
        _generations(path) if path.generations else None,
        open="open" if won else None,
    )


def _steps(path: SearchPath) -> Child:
    head = [
        th("Step"),
        th("Candidate"),
        th("Mixture"),
        th("Score"),
        th("Gain"),
        th("Outcome"),
        th("Why"),
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
    return [
        figures.steps(path),
        element("p", STEPS_KEYS, class_="keys"),
        table(f"Steps of {words.strategy(path.strategy)}", head, element("tbody", rows)),
    ]


def _generations(path: SearchPath) -> Child:
    rows = [
        element(
            "tr",
            element("th", first, scope="row", class_="num"),
            [element("td", cell, class_="num") for cell in rest],
        )
        for first, *rest in map(generations.row, path.generations)
    ]
    caption = f"Generations of {words.strategy(path.strategy)}"
    return [
        element("p", generations.summary(path)),
        evolution(path),
        element("p", EVOLUTION_KEYS, class_="keys"),
        fold(
            "Every generation, as a table",
            table(caption, list(map(th, generations.HEAD)), element("tbody", rows), class_="tight"),
        ),
    ]


def _numbers(candidate: Candidate) -> Child:
    """What is more than a weight for each model."""
    return [
        _grid(candidate.grid) if candidate.grid.groups else None,
        _layers(candidate) if candidate.runs else None,
        _parameters(candidate) if candidate.parameters else None,
    ]


def _grid(grid: Grid) -> Markup:
    """Groups downwards, as the layers lie on one another; the deeper the colour, the larger."""
    peaks: dict[str, float] = {}
    for knob in grid.columns:
        sizes = [abs(number) for number in grid.column(knob) if math.isfinite(number)]
        peaks[knob.parameter] = max([peaks.get(knob.parameter, 0.0), *sizes])
    rows = [
        element(
            "tr",
            element("th", group, scope="row"),
            [
                element("td", words.weight(cell), class_=_shade(cell, peaks[knob.parameter]))
                for knob, cell in zip(grid.columns, cells, strict=True)
            ],
        )
        for group, cells in zip(grid.groups, grid.cells, strict=True)
    ]
    head = [th("Group"), *(th(candidates.label(knob)) for knob in grid.columns)]
    return table(
        "Numbers by group of tensors", head, element("tbody", rows), class_="grid-of tight"
    )


def _shade(number: float | None, peak: float) -> str:
    if number is None or not math.isfinite(number) or not peak:
        return "num"
    return f"num {'w' if number >= 0 else 'n'}{math.ceil(5 * abs(number) / peak)}"


def _layers(candidate: Candidate) -> Markup:
    rows = [
        element(
            "tr",
            element("td", run.places, class_="num"),
            element("th", element("span", run.model, class_="name"), scope="row"),
            element("td", run.layers, class_="num"),
            element("td", candidates.scales(run)),
        )
        for run in candidate.runs
    ]
    head = list(map(th, candidates.RUN_HEAD))
    return table("Layers in their new order", head, element("tbody", rows), class_="tight")


def _parameters(candidate: Candidate) -> Markup:
    rows = [
        element("tr", element("th", name, scope="row"), element("td", words.weight(number)))
        for name, number in candidate.parameters.items()
    ]
    head = [th("Parameter"), th("Value")]
    return table("Parameters of the merge", head, element("tbody", rows), class_="tight")
