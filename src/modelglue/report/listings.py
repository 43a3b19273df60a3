"""What the smaller commands show: checkpoints, plans, methods, estimates, scores, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from modelglue.evaluate.scores import Scores
from modelglue.evaluate.statistics import mean_interval
from modelglue.report import words
from modelglue.report.markup import clean
from modelglue.report.terminal import table_of, wide_console

MAX_TENSORS = 24


def print_descriptions(descriptions: Sequence[Mapping[str, Any]]) -> None:
    """Checkpoints, a column each."""
    table = table_of("Checkpoints", ["", *(clean(d["name"]) for d in descriptions)])
    for key in ("architecture", "parameters", "layers", "hidden", "intermediate", "heads"):
        table.add_row(key, *(_cell(key, d[key]) for d in descriptions))
    for key in ("key_value_heads", "vocabulary", "tied", "dtypes", "nbytes", "adapters", "path"):
        table.add_row(key.replace("_", " "), *(_cell(key, d[key]) for d in descriptions))
    _print(table)


def print_plan(plan: Mapping[str, Any]) -> None:
    """A merge plan: where every output tensor comes from, and the bytes to move."""
    table = table_of(f"{plan['method']} of {', '.join(plan['models'])}", ["Tensor"])
    for title in ("Shape", "Dtype", "Parameters"):
        table.add_column(title, overflow="fold")
    for tensor in plan["tensors"][:MAX_TENSORS]:
        parameters = ", ".join(f"{name} {value}" for name, value in tensor["parameters"].items())
        table.add_row(
            Text(clean(tensor["name"])),
            "×".join(map(str, tensor["shape"])),
            tensor["dtype"],
            Text(clean(parameters)),
        )
    rest = len(plan["tensors"]) - MAX_TENSORS
    table.caption = (f"… and {rest} more tensors; " if rest > 0 else "") + (
        f"reads {_bytes(plan['bytes_to_read'])}, writes {_bytes(plan['bytes_to_write'])}"
    )
    _print(table)


def print_methods(methods: Sequence[Mapping[str, Any]]) -> None:
    """All methods, a line each."""
    table = table_of("Merge methods", ["Method", "Parameters", "What it does"])
    for method in methods:
        names = ", ".join(parameter["name"] for parameter in method["parameters"])
        table.add_row(method["name"], names, Text(method["summary"]))
    _print(table)


def print_method(method: Mapping[str, Any]) -> None:
    """One method: its formula, and its parameters with their ranges."""
    console = wide_console()
    console.print(Text(f"{method['name']}\n", style="bold"))
    console.print(Text(method["formula"] + "\n"))
    table = table_of("Parameters", ["Name", "One for each", "Default", "Range", "Meaning"])
    for parameter in method["parameters"]:
        low, high = parameter["low"], parameter["high"]
        limits = "" if low is None and high is None else f"{_open(low)} … {_open(high)}"
        default = "must be given" if parameter["default"] is None else str(parameter["default"])
        table.add_row(
            parameter["name"], parameter["per"], default.lower(), limits, parameter["help"]
        )
    console.print(table)
    console.print(Text(f"Laws: {', '.join(method['laws']).replace('_', ' ')}"))


def print_estimate(stages: Sequence[Mapping[str, Any]]) -> None:
    """The stages of a run and the most that each can take."""
    table = table_of("Stages, at most", ["Stage"])
    for title in ("Evaluations", "Items", "Memory", "Disk"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("What", overflow="fold")
    for stage in stages:
        numbers = [f"{stage[key]:,}" if stage[key] else "" for key in ("evaluations", "items")]
        sizes = [_bytes(stage[key]) if stage[key] else "" for key in ("memory", "disk")]
        table.add_row(stage["stage"], *numbers, *sizes, Text(clean(stage["text"])))
    total = sum(stage["disk"] for stage in stages)
    table.caption = f"disk in all {_bytes(total)}; memory is of weights alone"
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


def _open(bound: float | None) -> str:
    return "" if bound is None else f"{bound:g}"


def _cell(key: str, value: Any) -> Text:
    if value is None:
        return Text("–")
    if key == "parameters":
        return Text(words.parameters(value))
    if key == "nbytes":
        return Text(_bytes(value))
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, Mapping | list | tuple):
        return Text(clean(", ".join(map(str, value))))
    return Text(clean(str(value)))


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
