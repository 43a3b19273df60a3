"""Objectives with a closed form, and objectives made of items that are answered or not."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.search.blocks import Blocks
from modelglue.search.knobs import Knob
from modelglue.search.problem import (
    Coefficients,
    Problem,
    SearchResult,
    Trial,
    Tried,
    canonical,
    search,
)
from modelglue.search.trials import in_memory

Function = Callable[[Mapping[str, float]], float]

OFF = {"racing": "off"}
GOAL = {"a": 0.55, "b": 0.4, "c": 0.05, "d": 0.0}


def as_scores(value: float) -> Scores:
    return Scores((TaskScores("task", ("item",), (value,)),))


def objective(function: Function) -> Any:
    """An objective that gives every candidate this number; NaN is a candidate that failed."""

    def score(coefficients: Coefficients) -> Trial:
        value = function(coefficients)
        if math.isnan(value):
            return Trial(None, "the merge holds NaN")
        return Trial(as_scores(value))

    return in_memory(score)


def near(goal: Mapping[str, float]) -> Function:
    """0 at the goal, below it minus the squared distance over its knobs."""

    def score(coefficients: Mapping[str, float]) -> float:
        return -sum((number_of(coefficients, k) - v) ** 2 for k, v in goal.items())

    return score


def number_of(coefficients: Mapping[str, float], name: str) -> float:
    """A knob's number; that of a model alone holds for all groups."""
    knob = Knob.parse(name)
    plain = str(Knob(knob.model, "", knob.parameter))
    return coefficients.get(name, coefficients.get(plain, 0.0))


ITEMS = 80
BLOCKS = Blocks({"task": {f"item {i}": i % 4 for i in range(ITEMS)}})


def answered(function: Function) -> Callable[[Coefficients], Trial]:
    """80 items in 4 blocks, of which a candidate answers about this share.

    Half of what decides an item is the item's own and half is the candidate's luck with it.
    """

    def score(coefficients: Coefficients) -> Trial:
        share = function(coefficients)
        if math.isnan(share):
            return Trial(None, "the merge holds NaN")
        name = str(canonical(coefficients))
        values = tuple(
            float((_uniform(f"{i}") + _uniform(f"{name}{i}")) / 2 < share) for i in range(ITEMS)
        )
        return Trial(Scores((TaskScores("task", tuple(BLOCKS.places["task"]), values),)))

    return score


def of_items(function: Function) -> Any:
    """An objective that can be raced."""
    return in_memory(answered(function), blocks=BLOCKS)


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


class Watch:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.tried: list[Tried] = []
        self.calls: list[Sequence[Tried]] = []

    def __call__(self, tried: Sequence[Tried]) -> None:
        self.tried += tried
        self.calls.append(tried)

    def members(self, generation: int) -> list[Tried]:
        return [one for one in self.tried if one.generation == generation]


def problem(names: Sequence[str], objective: Any, **more: Any) -> Problem:
    return Problem(tuple(names), objective, lambda coefficients, name: 0.0, **more)


def hill(coefficients: dict[str, float]) -> float:
    return 0.25 + 0.5 * math.exp(4 * near(GOAL)(coefficients))


def evolve(problem: Problem, **options: Any) -> SearchResult:
    return search("evolution", Problem(**{**vars(problem), "options": {**OFF, **options}}))
