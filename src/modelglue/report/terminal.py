"""The report in a terminal: compact tables that fit a hundred columns.

Cells are `Text`, so that brackets in a name are not read as rich's markup, and cleaned, so that an
escape sequence in a name does not reach the terminal.
"""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelglue.report import candidates, families, generations, verdicts, words
from modelglue.report.data import RunReport, SearchPath, SimilarityMap, TableRow
from modelglue.report.figures import tone_of
from modelglue.report.headline import headline
from modelglue.report.markup import clean

_TONES = {"gain": "green", "loss": "red", "unclear": "dim"}
_FATES = {"merged": "green", "expert": "green", "dropped": "red", "baseline": "dim"}
MAX_SINGLES = 12


def print_report(report: RunReport, console: Console | None = None) -> None:
    """All tables and notes, the verdict last, where the eye is."""
    console = console or wide_console()
    verdict = headline(report)
    style = {"gain": "bold green", "loss": "bold red"}.get(verdict.verdict, "bold")
    won = [s for s in report.searches if s.winner and not verdicts.refused(report, s)]
    numbers = [table for path in won for table in number_tables(path)]
    tables = (*final_tables(report), fates_table(report), *numbers, *routing_tables(report))
    for part in (*tables, *acceptance_parts(report)):
        console.print(part)
    for note in report.notes:
        console.print(Text(f"Note: {clean(note)}"))
    console.print(Text.assemble((f"{verdict.short}. ", style), clean(verdict.sentence)))


def final_tables(report: RunReport) -> list[Table]:
    """The final table; scores by task follow in tables of their own if they are many."""
    tasks = words.task_names(report)
    beside = tasks if len(tasks) <= 3 else []
    others = words.other_singles(report)
    shown = words.contestants(report) + others[:MAX_SINGLES]
    of = "report items, out of 100, 95 % intervals of one comparison each"
    table = table_of(f"Final table ({of})", ["Contestant"])
    titles: list[str | Text] = ["Average", "Difference", *map(_short, beside), "Stored", "Active"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in shown:
        scores = [_score(row, task) for task in beside]
        costs = [words.parameters(row.stored), words.parameters(row.active)]
        cells = [Text(words.score(row.average)), _difference(row), *map(Text, scores + costs)]
        table.add_row(_name(row), *cells, style="bold" if row.kind == "glued" else None)
    if len(others) > MAX_SINGLES:
        table.caption = f"… and {len(others) - MAX_SINGLES} more single models in the report"
    tables = [table]
    for start in range(0, len(tasks) if not beside else 0, 7):
        chunk = tasks[start : start + 7]
        table = table_of("Scores by task", ["Contestant"])
        for task in chunk:
            table.add_column(_short(task), justify="right", no_wrap=True)
        for row in shown:
            style = "bold" if row.kind == "glued" else None
            table.add_row(_name(row), *(_score(row, task) for task in chunk), style=style)
        tables.append(table)
    return tables


def fates_table(report: RunReport) -> Table:
    """What became of each model, with its coefficient and why."""
    table = table_of("What became of each model", ["Model"])
    table.add_column("Fate", no_wrap=True)
    for title in ("Family", "Weight", "Search"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("Why", max_width=44)
    for model in words.by_family(report.models):
        table.add_row(
            Text(clean(model.name)),
            Text(words.FATES[model.fate], style=_FATES[model.fate]),
            words.family(model.family),
            Text(candidates.share(report, model).text),
            words.score(words.mean(model.search)),
            Text(clean(model.reason)),
        )
    return table


def families_table(similarity: SimilarityMap) -> Table:
    """The families, each with its loosest pair and its nearest stranger."""
    table = table_of(f"Families at threshold {similarity.threshold:g}", [])
    table.add_column("Family", justify="right", no_wrap=True)
    table.add_column("Models", overflow="fold", ratio=1)
    table.add_column("Lowest inside", justify="right", no_wrap=True)
    table.add_column("Highest outside", justify="right", no_wrap=True)
    for summary in families.family_summaries(similarity):
        table.add_row(
            words.family(summary.family),
            Text(clean(", ".join(summary.members))),
            words.similar(summary.lowest_inside),
            words.similar(summary.highest_outside),
        )
    return table


def reasons_table(similarity: SimilarityMap, *, most: int = 40) -> Table:
    """Why pairs of models are not in one family."""
    table = table_of("Not mergeable", ["Model", "Model", "Why"])
    for reason in similarity.reasons[:most]:
        table.add_row(*(Text(clean(part)) for part in (reason.a, reason.b, reason.reason)))
    rest = len(similarity.reasons) - most
    if rest > 0:
        table.caption = f"… and {rest} more pairs"
    return table


def search_tables(path: SearchPath, *, refused: bool = False) -> list[Table]:
    """A search's way, step by step or generation by generation, and the numbers that it came to.

    Args:
        refused: whether its result was tested and not accepted.
    """
    won = candidates.won(path, refused=refused)
    name = f"{words.strategy(path.strategy)}, family {words.family(path.family)}"
    way = _generations(path) if path.generations else _steps(path)
    way.title = Text(clean(f"{name} {won}".strip()), style="bold")
    formula = candidates.formula(path)
    lines = [": ".join(filter(None, (candidates.summary(path), formula)))]
    if path.generations:
        shown = generations.selected(path)
        lines += [generations.summary(path), *([f"{shown}."] if shown else [])]
    way.caption = Text(clean("\n".join(lines)))
    return [way, *number_tables(path)]


def _steps(path: SearchPath) -> Table:
    table = table_of("", [])
    table.add_column("Step", justify="right", no_wrap=True)
    table.add_column("Candidate", overflow="fold", max_width=34)
    for title in ("Mixture", "Score", "Gain"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("Outcome", no_wrap=True)
    for i, step in enumerate(path.steps):
        table.add_row(
            f"{i + 1}",
            Text(clean(step.candidate)),
            words.mixture(step.coefficient),
            words.score(step.score),
            words.gain(step),
            Text(words.outcome(step, i), style="green" if step.accepted else "red"),
        )
    return table


def _generations(path: SearchPath) -> Table:
    table = table_of("", [])
    for title in generations.HEAD:
        table.add_column(title, justify="right")
    for generation in generations.selection(path.generations):
        table.add_row(*generations.row(generation))
    return table


def number_tables(path: SearchPath) -> list[Table]:
    """What of a search's result is more than a weight for each model."""
    candidate = candidates.read(path)
    grid, tables = candidate.grid, list[Table]()
    family = f"family {words.family(path.family)}"
    for start in range(0, len(grid.columns), 6):
        table = table_of(f"Numbers by group of tensors, {family}", ["Group"])
        for knob in grid.columns[start : start + 6]:
            name = Text(clean(candidates.label(knob)))
            table.add_column(name, justify="right", overflow="fold", max_width=12)
        for group, cells in zip(grid.groups, grid.cells, strict=True):
            table.add_row(Text(clean(group)), *map(words.weight, cells[start : start + 6]))
        tables.append(table)
    if candidate.runs:
        table = table_of(f"Layers in their new order, {family}", candidates.RUN_HEAD)
        for run in candidate.runs:
            shown = (run.places, run.model, run.layers, candidates.scales(run))
            table.add_row(*(Text(clean(cell)) for cell in shown))
        tables.append(table)
    if candidate.parameters:
        table = table_of(f"Parameters of the merge, {family}", ["Parameter"])
        table.add_column("Value", justify="right", no_wrap=True)
        for parameter, number in candidate.parameters.items():
            table.add_row(Text(clean(parameter)), words.weight(number))
        tables.append(table)
    return tables


def acceptance_parts(report: RunReport) -> list[Text | Table]:
    """The tests that accepted merges or did not: each in words, then against each rival."""
    parts: list[Text | Table] = []
    for test in report.acceptance:
        title = f"{verdicts.title(test, report)}: {verdicts.mark(test)}"
        table = table_of("", verdicts.HEAD[:1])
        for name in verdicts.HEAD[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        for one in test.comparisons:
            gap, p = verdicts.evidence(one)
            tone = _TONES[tone_of(one.difference)]
            table.add_row(Text(clean(one.rival)), Text(gap, style=tone), p)
        table.title = None
        said = f"{verdicts.said(test)}\n{verdicts.terms(test)}"
        parts += [Text(clean(title), style="bold"), Text(clean(said))]
        parts.append(table if test.comparisons else Text(""))
    for alone in verdicts.untested(report):
        title = f"{alone.title}: {verdicts.UNTESTED}"
        parts += [Text(clean(title), style="bold"), Text(clean(f"{alone.said}\n"))]
    return parts


def routing_tables(report: RunReport) -> list[Table]:
    """Items of each task by expert, six experts a table; no table without a router."""
    routing = report.routing
    if routing is None:
        return []
    tables = []
    for start in range(0, len(routing.experts), 6):
        table = table_of("Routing (report items by expert)", ["Task"])
        for expert in routing.experts[start : start + 6]:
            table.add_column(Text(clean(expert)), justify="right", overflow="fold", max_width=12)
        for task, counts in zip(routing.tasks, routing.counts, strict=True):
            table.add_row(Text(clean(task)), *(f"{n}" for n in counts[start : start + 6]))
        tables.append(table)
    return tables


def wide_console() -> Console:
    """Standard output; where it is no terminal, as wide as the tables are made for."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def table_of(title: str, names: Sequence[str]) -> Table:
    """An empty table in the house's style, with these columns."""
    table = Table(
        title=Text(clean(title), style="bold"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in names:
        table.add_column(name, overflow="fold", max_width=34)
    return table


def _name(row: TableRow) -> Text:
    return Text(clean(row.name), overflow="fold")


def _difference(row: TableRow) -> Text:
    style = _TONES[tone_of(row.difference)] if row.difference else "dim"
    return Text(words.difference(row), style=style)


def _score(row: TableRow, task: str) -> str:
    return words.score(row.scores[task]) if task in row.scores else words.NONE


def _short(name: str, most: int = 9) -> Text:
    name = clean(name)
    return Text(name if len(name) <= most else f"{name[: most - 1]}…")
