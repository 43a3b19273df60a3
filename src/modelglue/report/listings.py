"""What the smaller commands show: checkpoints, methods, estimates, scores, as tables."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from modelglue.evaluate.scores import Scores
from modelglue.evaluate.statistics import mean_interval
from modelglue.merge.method import Law
from modelglue.report import words
from modelglue.report.markup import clean
from modelglue.report.method_pages import BASE, count_of, default_of, range_of
from modelglue.report.terminal import table_of, wide_console


def print_descriptions(descriptions: Sequence[Mapping[str, Any]]) -> None:
    """Checkpoints, a column each."""
    table = table_of("Checkpoints", ["", *(clean(d["name"]) for d in descriptions)])
    for key in ("architecture", "parameters", "layers", "hidden", "intermediate", "heads"):
        table.add_row(key, *(_cell(key, d[key]) for d in descriptions))
    for key in ("key_value_heads", "vocabulary", "tied", "dtypes", "nbytes", "adapters", "path"):
        table.add_row(key.replace("_", " "), *(_cell(key, d[key]) for d in descriptions))
    _print(table)


def print_methods(methods: Sequence[Mapping[str, Any]]) -> None:
    """All methods, a line each, however wide the terminal."""
    console = wide_console()
    width = max(len(method["name"]) for method in methods)
    for method in methods:
        does = re.sub(r" \([^()]*\d{4}\.\d{5}\)$", "", method["summary"].rstrip("."))
        console.print(Text(f"{method['name']:<{width}}  {does}"), soft_wrap=True)
    console.print(Text("\nmodelglue methods NAME shows one with its formula and its parameters."))


def print_method(method: Mapping[str, Any]) -> None:
    """One method: its formula, and its parameters with their ranges."""
    console = wide_console()
    console.print(Text(f"{method['name']}\n", style="bold"))
    console.print(Text(method["formula"] + "\n"))
    console.print(Text(f"Models: {count_of(method)}. Base: {BASE[method['base']]}.\n"))
    table = table_of("Parameters", ["Name", "One for"])
    table.add_column("Default", no_wrap=True)
    table.add_column("Range", max_width=24)
    table.add_column("Meaning")
    for parameter in method["parameters"]:
        cells = (default_of(parameter), range_of(parameter), parameter["help"])
        table.add_row(parameter["name"], f"each {parameter['per']}", *map(Text, cells))
    console.print(table if method["parameters"] else "It has no parameters.")
    laws = {law.name.lower(): law.value for law in Law}
    console.print(Text("Laws", style="bold"))
    for law in method["laws"]:
        console.print(Text(f"  {law.replace('_', '-')}: {laws[law]}"))
    if not method["laws"]:
        console.print("  none")
    papers = re.findall(r"\b\d{4}\.\d{5}\b", method["formula"])
    for paper in dict.fromkeys(papers):
        console.print(Text(f"Source: https://arxiv.org/abs/{paper}"))


def print_statistics(made: Mapping[str, Any]) -> None:
    """What statistics were computed of, and the tensors that have none or were never reached."""
    console = wide_console()
    text = f"{made['kind']} of {made['tensors']:,} tensors, from {made['tokens']:,} tokens"
    console.print(Text(f"{text} in {made['sequences']:,} sequences"))
    for why, names in made["skipped"].items():
        console.print(Text(f"skipped, {clean(why)}: {_few(names)}"))
    if made["unreached"]:
        console.print(Text(f"the text never led to: {_few(made['unreached'])}"))


def print_estimate(stages: Sequence[Mapping[str, Any]]) -> None:
    """The stages of a run and the most that each can take."""
    table = table_of("Stages, at most", ["Stage"])
    for title in ("Evaluations", "Items", "Memory", "Disk"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("What", overflow="fold")
    for stage in stages:
        numbers = [f"{stage[key]:,}" if stage[key] else "" for key in ("evaluations", "items")]
        sizes = [size(stage[key]) if stage[key] else "" for key in ("memory", "disk")]
        table.add_row(stage["stage"], *numbers, *sizes, Text(clean(stage["text"])))
    total = sum(stage["disk"] for stage in stages)
    table.caption = f"disk in all {size(total)}; memory is of weights alone"
    _print(table)


def print_scores(scores: Scores) -> None:
    """Each task's score with its interval, and their mean."""
    table = table_of("Scores, out of 100, with 95 % intervals", ["Task"])
    for title in ("Items", "Score", "Interval", "Other metrics"):
        table.add_column(title, justify="right")
    for task in scores.tasks:
        interval = mean_interval(Scores((task,)))
        metrics = ", ".join(f"{n} {sum(v) / len(v):.3f}" for n, v in task.metrics.items())
        table.add_row(
            Text(clean(task.task)),
            f"{len(task.items)}",
            words.score(task.mean),
            f"{100 * interval.low:.1f} … {100 * interval.high:.1f}",
            metrics,
        )
    whole = mean_interval(scores)
    spread = f"{100 * whole.low:.1f} … {100 * whole.high:.1f}"
    table.add_row("mean", "", words.score(scores.mean), spread, "", style="bold")
    _print(table)


def _print(table: Table) -> None:
    wide_console().print(table)


def _few(names: Sequence[str], most: int = 5) -> str:
    rest = len(names) - most
    return clean(", ".join(names[:most])) + (f" and {rest:,} more" if rest > 0 else "")


def _cell(key: str, value: Any) -> Text:
    if value is None:
        return Text("–")
    if key == "parameters":
        return Text(words.parameters(value))
    if key == "nbytes":
        return Text(size(value))
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, Mapping | list | tuple):
        return Text(clean(", ".join(map(str, value))))
    return Text(clean(str(value)))


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
