"""A merge plan in a terminal: alike tensors of many layers are one line.

Works on `MergePlan.describe()` alone.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelglue.report.listings import size
from modelglue.report.markup import clean
from modelglue.report.terminal import table_of, wide_console

Tensor = Mapping[str, Any]

MAX_LINES = 60
MAX_POINTS = 4

_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")


def print_plan(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """The models, the parameters, every output tensor, the rows of tokens, and what it takes."""
    console = console or wide_console()
    console.print(models_table(plan))
    if plan["statistics"]:
        console.print(statistics_table(plan))
    parameters = parameters_table(plan)
    if parameters.row_count:
        console.print(parameters)
    console.print(tensors_table(plan))
    for line in totals(plan):
        console.print(Text(line))
    for note in plan["notes"]:
        console.print(Text(f"Note: {clean(note)}"))


def models_table(plan: Mapping[str, Any]) -> Table:
    """Every model and what it is there for."""
    table = table_of(plan["method"], ["Model"])
    table.add_column("Role", no_wrap=True)
    table.add_column("From", overflow="fold")
    for model in plan["models"]:
        table.add_row(*(Text(clean(part)) for part in (model["name"], role(model), model["from"])))
    return table


def role(model: Mapping[str, Any]) -> str:
    """What a model is there for."""
    parts = ["merged"] if model["merged"] else []
    if model["subtracted"]:
        parts.append("base")
    elif model["base"]:
        parts.append("named as base")
    if model["template"]:
        parts.append("lends config.json")
    return ", ".join(parts) or "not read"


def statistics_table(plan: Mapping[str, Any]) -> Table:
    """The checkpoints of statistics."""
    table = table_of("Statistics", ["Name", "Kind", "Tokens"])
    table.add_column("From", overflow="fold")
    for one in plan["statistics"]:
        tokens = f"{one['tokens']:,}" if isinstance(one["tokens"], int) else "–"
        cells = (one["name"], str(one["kind"] or "–"), tokens, one["from"])
        table.add_row(*(Text(clean(cell)) for cell in cells))
    return table


def parameters_table(plan: Mapping[str, Any]) -> Table:
    """The parameters that are the same everywhere; the others stand beside their tensors."""
    table = table_of("Parameters of all tensors", ["Name"])
    table.add_column("Value", overflow="fold")
    for name, value in constant(plan["tensors"]).items():
        table.add_row(name, Text(clean(_course([value]))))
    return table


def constant(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """The parameters that have one value for all tensors."""
    found: dict[str, Any] = {}
    varying: set[str] = set()
    for parameters in _parameters(tensors):
        for name, value in parameters.items():
            if found.setdefault(name, value) != value:
                varying.add(name)
    return {name: value for name, value in found.items() if name not in varying}


def tensors_table(plan: Mapping[str, Any]) -> Table:
    """Every output tensor: alike ones are a line, in which {0–31} stands for the numbers."""
    same = constant(plan["tensors"])
    varies = any(parameters.keys() - same.keys() for parameters in _parameters(plan["tensors"]))
    table = table_of("Tensors", [])
    table.add_column("Tensor", overflow="fold", max_width=48)
    table.add_column("×", justify="right", no_wrap=True)
    for title in ("Shape", "Dtype"):
        table.add_column(title, no_wrap=True)
    table.add_column("Of", overflow="fold")
    if varies:
        table.add_column("Parameters", overflow="fold")
    folds = folded(plan["tensors"])
    for fold in folds[:MAX_LINES]:
        first = fold.tensors[0]
        cells = [fold.name, f"{len(fold.tensors)}", "×".join(map(str, first["shape"])) or "scalar"]
        cells += [first["dtype"], fold.sources]
        if varies:
            cells.append(fold.parameters(without=same))
        table.add_row(*(Text(clean(cell)) for cell in cells))
    rest = sum(len(fold.tensors) for fold in folds[MAX_LINES:])
    table.caption = Text(
        f"{len(plan['tensors']):,} tensors"
        + (f"; {rest:,} of them are not shown here, --json has them all" if rest else "")
    )
    return table


def totals(plan: Mapping[str, Any]) -> list[str]:
    """What the merge takes, in lines."""
    again = {
        None: "",
        "tensor": ", and once more for a first pass over each tensor",
        "model": ", and once more for a first pass over the whole model",
    }[plan["measured"]]
    return [
        f"reads   {size(plan['bytes_to_read'])}{again}",
        f"writes  {size(plan['bytes_to_write'])} as {', '.join(plan['dtypes'])}",
        f"memory  about {size(plan['memory'])} in {plan['threads']} threads, beside the program",
    ]


@dataclass
class Fold:
    """Tensors that differ in the numbers in their names alone."""

    tensors: list[Tensor] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of all of them: each number that varies as {its values}."""
        return _together([tensor["name"] for tensor in self.tensors])

    @property
    def sources(self) -> str:
        """Which models they are of, with the tensors' names where those differ."""
        first = self.tensors[0]
        columns = zip(*(tensor["sources"] for tensor in self.tensors), strict=True)
        parts = [self._source(column) for column in columns]
        text = ", ".join(parts)
        if first["copied"]:
            return f"{parts[0]}, copied"
        if first["base"] is not None:
            text += f" on {self._source([tensor['base'] for tensor in self.tensors])}"
        statistics = [one["model"] for one in first["statistics"] if one is not None]
        if statistics:
            text += f", by {', '.join(statistics)}"
        return text + (", rows united" if first["united"] else "")

    def parameters(self, *, without: Mapping[str, Any]) -> str:
        """The parameters that are not in `without`; where they vary within, their course."""
        said = []
        for name in self.tensors[0]["parameters"]:
            if name not in without and not self.tensors[0]["copied"]:
                values = [tensor["parameters"].get(name) for tensor in self.tensors]
                said.append(f"{name} {_course(values)}")
        return "; ".join(said)

    def _source(self, sources: Sequence[Mapping[str, str]]) -> str:
        model, names = sources[0]["model"], [source["tensor"] for source in sources]
        own = [tensor["name"] for tensor in self.tensors]
        if names == own:
            return model
        if _NUMBER.sub("{}", names[0]) != _NUMBER.sub("{}", own[0]):
            return f"{model}: {_together(names)}"
        return f"{model}: {_moved(own, names)}"


def folded(tensors: Iterable[Tensor]) -> list[Fold]:
    """Alike tensors together, in the order of the first of each."""
    found: dict[Any, Fold] = {}
    for tensor in tensors:
        pattern = _NUMBER.sub("{}", tensor["name"])
        columns = [*tensor["sources"], tensor["base"], *tensor["statistics"]]
        places = tuple(one and (one["model"], _shift(tensor["name"], one)) for one in columns)
        kind = tensor["dtype"], tuple(tensor["shape"]), tensor["copied"], tensor["united"]
        found.setdefault((pattern, places, kind), Fold()).tensors.append(tensor)
    return list(found.values())


def _shift(name: str, source: Mapping[str, str]) -> Any:
    """How a source's name differs from the output's: alike for layers moved by as many."""
    if source["tensor"] == name:
        return None
    own, there = _NUMBER.findall(name), _NUMBER.findall(source["tensor"])
    if len(own) != len(there):
        return source["tensor"]
    moves = tuple(int(b) - int(a) for a, b in zip(own, there, strict=True))
    return _NUMBER.sub("{}", source["tensor"]), moves


def _together(names: Sequence[str]) -> str:
    """Names that differ in numbers alone as one."""
    shown = iter([_ranges([number for _, number in column]) for column in _columns(names)])
    return _NUMBER.sub(lambda _: next(shown), names[0])


def _moved(own: Sequence[str], names: Sequence[str]) -> str:
    """The numbers that differ, each with the word before it: `layers.{8–31}`."""
    found = []
    for there, here in zip(_columns(names), _columns(own), strict=True):
        if there != here:
            before = names[0].split(".")[: there[0][0]]
            found.append(".".join([*before[-1:], _ranges([number for _, number in there])]))
    return ", ".join(found)


def _columns(names: Sequence[str]) -> list[list[tuple[int, int]]]:
    """For each number in names of one pattern, its (place among the parts, value) by name."""
    parts = [name.split(".") for name in names]
    places = [i for i, part in enumerate(parts[0]) if _NUMBER.fullmatch(part)]
    return [[(i, int(name[i])) for name in parts] for i in places]


def _ranges(numbers: Sequence[int]) -> str:
    """`3`, `{0–7}`, `{0–3,8–11}`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)
    return text if len(set(numbers)) == 1 else f"{{{text}}}"


def _course(values: Sequence[Any]) -> str:
    """The value, or those along the layers with repeats left out; of each model for itself."""
    if isinstance(values[0], list | tuple):
        own = [_course(column) for column in zip(*values, strict=True)]
        same = len(own) > 1 and all(one == own[0] for one in own)
        return f"{own[0]} each" if same else ", ".join(own)
    steps = [value for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
    shown = [*map(_value, steps)]
    if len(steps) > MAX_POINTS:
        shown = [*shown[: MAX_POINTS - 1], "…", shown[-1]]
    return " → ".join(shown)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def _parameters(tensors: Iterable[Tensor]) -> list[Mapping[str, Any]]:
    return [tensor["parameters"] for tensor in tensors if not tensor["copied"]]
