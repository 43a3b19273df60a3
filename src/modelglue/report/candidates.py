"""What a search found, as a person reads it: weights, layers in a row, other parameters.

A candidate is a flat mapping of names to numbers (see `search.knobs`). Most are a weight for each
model and nothing else; the rest are sorted here into what they are of.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from modelglue.report import verdicts, words
from modelglue.report.data import ModelFate, RunReport, SearchPath
from modelglue.search.knobs import EVERY_MODEL, WEIGHT, Knob

RUN_HEAD = ("Places", "Model", "Its layers", "Scaled by")
_BETWEEN = Knob(EVERY_MODEL, parameter="t")


@dataclass(frozen=True)
class Run:
    """Layers of one model that follow one another at places of the new model that do so too.

    Attributes:
        place: of the first.
        layer: the first.
        scales: one a layer.
    """

    model: str
    place: int
    layer: int
    scales: tuple[float, ...]

    @property
    def places(self) -> str:
        """First and last place."""
        return _first_to_last(self.place, len(self.scales))

    @property
    def layers(self) -> str:
        """First and last layer."""
        return _first_to_last(self.layer, len(self.scales))


@dataclass(frozen=True)
class Grid:
    """Numbers that differ between groups of tensors.

    Attributes:
        groups: their labels, from the first layer to the last, then the rest.
        columns: what the numbers are: a knob for each, without its group.
        cells: [groups, columns]; None where the candidate has no such number.
    """

    groups: tuple[str, ...]
    columns: tuple[Knob, ...]
    cells: tuple[tuple[float | None, ...], ...]

    def column(self, knob: Knob) -> list[float]:
        """The numbers of a column."""
        index = self.columns.index(knob)
        cells = (row[index] for row in self.cells)
        return [cell for cell in cells if cell is not None]


@dataclass(frozen=True)
class Candidate:
    """The numbers of a candidate by what they are of.

    Attributes:
        weights: of models that have one weight in all tensors.
        grid: whatever differs between groups of tensors.
        runs: layers in the order in which they follow one another.
        parameters: other numbers of the merge method, by their names in words.
    """

    weights: Mapping[str, float]
    grid: Grid
    runs: tuple[Run, ...]
    parameters: Mapping[str, float]

    def weights_of(self, model: str) -> list[float]:
        """Every weight that a model has somewhere; between two with a `t`, its shares.

        Weights beside a `t` say only which two models they are; the second of them has t.
        """
        if self._between and len(self.weights) == 2 and model in self.weights:
            first = next(iter(self.weights))
            return [1 - t if model == first else t for t in self._between]
        alone = [self.weights[model]] if model in self.weights else []
        return alone + self._in_groups(Knob(model))

    @property
    def _between(self) -> list[float]:
        """How far the merge is from one model to another, wherever that is said."""
        name = label(_BETWEEN)
        alone = [self.parameters[name]] if name in self.parameters else []
        return alone + self._in_groups(_BETWEEN)

    def _in_groups(self, knob: Knob) -> list[float]:
        return self.grid.column(knob) if knob in self.grid.columns else []


def read(path: SearchPath) -> Candidate:
    """Sort a result's numbers. Whatever is no known knob is taken for a model's weight."""
    models = {step.candidate for step in path.steps}
    weights: dict[str, float] = {}
    grouped: dict[Knob, dict[str, float]] = {}
    layers: list[tuple[int, str, int, float]] = []
    parameters: dict[str, float] = {}
    for name, number in path.coefficients.items():
        knob = _knob(name, models)
        place = re.fullmatch(r"place ([0-9]{1,9})", knob.parameter)
        layer = re.fullmatch(r"layer ([0-9]{1,9})", knob.group)
        if place and layer:
            layers.append((int(place[1]), knob.model, int(layer[1]), number))
        elif knob.group:
            grouped.setdefault(replace(knob, group=""), {})[knob.group] = number
        elif knob.parameter == WEIGHT:
            weights[name] = number
        else:
            parameters[label(knob)] = number
    return Candidate(weights, _grid(grouped), tuple(_runs(sorted(layers))), parameters)


def kept(path: SearchPath) -> list[str]:
    """The models in a search's result, those with the most of it first."""
    candidate = read(path)
    layers = Counter(run.model for run in candidate.runs for _ in run.scales)
    names = [
        *candidate.weights,
        *(knob.model for knob in candidate.grid.columns if knob.parameter == WEIGHT),
        *layers,
    ]
    weights = {name: candidate.weights_of(name) for name in dict.fromkeys(names)}
    heft = {name: layers[name] + _mean(own) for name, own in weights.items()}
    return sorted((n for n in weights if layers[n] or any(weights[n])), key=lambda n: -heft[n])


def formula(path: SearchPath) -> str:
    """A search's result in a line; where a number differs between tensors, its range."""
    candidate = read(path)
    own = {name: candidate.weights_of(name) for name in kept(path)}
    total = " + ".join(f"{between(numbers)} {name}" for name, numbers in own.items() if numbers)
    order = ", ".join(f"{run.model} {run.layers}" for run in candidate.runs)
    parts = [total, f"layers: {order}" if order else ""]
    if not any(parts):  # SLERP has a place between two models, and no weights
        ranges = {label(knob): candidate.grid.column(knob) for knob in candidate.grid.columns}
        alone = {name: [number] for name, number in candidate.parameters.items()}
        parts = [f"{name} {between(numbers)}" for name, numbers in (alone | ranges).items()]
    return "; ".join(part for part in parts if part)


def summary(path: SearchPath) -> str:
    """A search in a line: its score is the best of many, and says so."""
    count = len(kept(path))
    parts = [
        f"{words.score(path.score)}{_interval(path)}",
        "1 trial" if path.trials == 1 else f"best of {path.trials:,} trials",
        f"{path.items:,} item evaluations" if path.items else "",
        "1 model kept" if count == 1 else f"{count} models kept",
    ]
    return " · ".join(filter(None, parts if count or not path.coefficients else parts[:-1]))


def _interval(path: SearchPath) -> str:
    ends = [end for end in (path.low, path.high) if end is not None and math.isfinite(end)]
    if len(ends) < 2:
        return ""
    return f" (95 % interval {' to '.join(map(words.score, ends))}, not corrected)"


def won(path: SearchPath, *, refused: bool) -> str:
    """What the best search of a family is marked with; nothing for the others."""
    return "✕ the best, but not accepted" if refused else "★ the winner" if path.winner else ""


@dataclass(frozen=True)
class Share:
    """How much of the merge of its family a model is.

    Attributes:
        text: its weight, the range of its weights, or the number of its layers.
        part: a fraction for a bar; None if there is none.
    """

    text: str
    part: float | None


def share(report: RunReport, model: ModelFate) -> Share:
    """A model's part in the merge of its family; none where no merge was accepted."""
    path = words.winning_search(report, model.family)
    if path is None or verdicts.refused(report, path):
        return Share(words.NONE, None)
    candidate = read(path)
    weights = candidate.weights_of(model.name)
    if weights:
        return Share(between(weights), _mean(weights))
    mine = sum(len(run.scales) for run in candidate.runs if run.model == model.name)
    places = sum(len(run.scales) for run in candidate.runs)
    return Share(f"{mine} of {places} layers", mine / places) if mine else Share(words.NONE, None)


def label(knob: Knob) -> str:
    """What a number is, the tensors that it holds for aside."""
    return knob.parameter if knob.model == EVERY_MODEL else str(replace(knob, group=""))


def between(numbers: Iterable[float]) -> str:
    """A number, or the range of several.

    >>> between([0.2, 0.2]), between([0.6, 0.2])
    ('0.200', '(0.200 to 0.600)')
    """
    finite = [number for number in numbers if math.isfinite(number)]
    if not finite:
        return words.NONE
    low, high = words.weight(min(finite)), words.weight(max(finite))
    return low if low == high else f"({low} to {high})"


def scales(run: Run) -> str:
    """What the layers of a run are multiplied by."""
    shown = [words.weight(scale) for scale in run.scales]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


def _knob(name: str, models: Collection[str]) -> Knob:
    # What had its turn in a search is a model, whatever its name looks like.
    if name in models:
        return Knob(name)
    try:
        return Knob.parse(name)
    except ValueError:
        return Knob(name)


def _grid(grouped: Mapping[Knob, Mapping[str, float]]) -> Grid:
    groups = sorted({group for numbers in grouped.values() for group in numbers}, key=_depth)
    columns = sorted(
        grouped,
        key=lambda knob: (knob.parameter != WEIGHT, knob.parameter, -_mean(grouped[knob].values())),
    )
    cells = tuple(tuple(grouped[knob].get(group) for knob in columns) for group in groups)
    return Grid(tuple(groups), tuple(columns), cells)


def _depth(group: str) -> tuple[bool, list[int], str]:
    """Layer 10 comes after layer 9, and what is in no layer after all."""
    numbers = [int(digits) for digits in re.findall("[0-9]{1,9}", group)]
    return not numbers, numbers, group


def _runs(layers: Iterable[tuple[int, str, int, float]]) -> list[Run]:
    runs: list[Run] = []
    for place, model, layer, scale in layers:
        last = runs[-1] if runs else None
        if last and (model, place, layer) == (
            last.model,
            last.place + len(last.scales),
            last.layer + len(last.scales),
        ):
            runs[-1] = replace(last, scales=(*last.scales, scale))
        else:
            runs.append(Run(model, place, layer, (scale,)))
    return runs


def _first_to_last(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}–{first + count - 1}"


def _mean(numbers: Iterable[float]) -> float:
    finite = [number for number in numbers if math.isfinite(number)]
    return sum(finite) / len(finite) if finite else 0.0
