"""Maths: word problems of two steps, answered with the steps and `#### n`."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from modelglue.minizoo.data.example import Document, Example, Split, split_of
from modelglue.minizoo.data.styles import ask

_THINGS = "pens books coins stones cards shells cups stamps apples eggs".split()
_VERBS = {
    "+": ("gets {n}", "finds {n}", "buys {n}", "wins {n}"),
    "-": ("loses {n}", "sells {n}", "gives away {n}", "breaks {n}"),
    "*": ("has {n} times as many", "makes it {n} times as many"),
}
_LARGEST = 50


@dataclass(frozen=True)
class Problem:
    """start (op₁ n₁) (op₂ n₂), as numbers."""

    start: int
    steps: tuple[tuple[str, int], tuple[str, int]]

    @property
    def identity(self) -> str:
        """The same for all wordings."""
        return f"{self.start}" + "".join(f"{sign}{n}" for sign, n in self.steps)

    def solution(self) -> str:
        """The worked steps and the answer.

        >>> Problem(7, (("+", 5), ("-", 3))).solution()
        ' 7 + 5 = 12, 12 - 3 = 9 #### 9'
        """
        value, lines = self.start, []
        for sign, n in self.steps:
            result = _apply(value, sign, n)
            lines.append(f"{value} {sign} {n} = {result}")
            value = result
        return f" {', '.join(lines)} #### {value}"

    def answer(self) -> int:
        """The number asked for."""
        value = self.start
        for sign, n in self.steps:
            value = _apply(value, sign, n)
        return value


def example(
    rng: random.Random,
    people: Sequence[str],
    split: Split = "train",
    *,
    style: str | None = None,
) -> Example:
    """A problem of the split, with its answer as text."""
    problem = draw(rng, split)
    name, thing = rng.choice(people), rng.choice(_THINGS)
    first, second = (rng.choice(_VERBS[sign]).format(n=n) for sign, n in problem.steps)
    text = f"{name} has {problem.start} {thing}, {first}, then {second}. How many {thing}?"
    fields = {"answer": str(problem.answer())}
    return Example(ask(rng, text, style=style), problem.solution(), problem.identity, fields)


def wrong(rng: random.Random, people: Sequence[str]) -> Document:
    """A problem with a solution to another one."""
    return Document(example(rng, people).prompt, draw(rng, "train").solution())


def draw(rng: random.Random, split: Split) -> Problem:
    """A problem of the split whose numbers stay within 0 … 50."""
    while True:
        problem = Problem(rng.randint(2, 20), (_step(rng), _step(rng)))
        middle = _apply(problem.start, *problem.steps[0])
        if not (0 <= middle <= _LARGEST and 0 <= problem.answer() <= _LARGEST):
            continue
        if split_of(problem.identity) == split:
            return problem


def _step(rng: random.Random) -> tuple[str, int]:
    sign = rng.choice("++--*")
    return sign, rng.randint(2, 3) if sign == "*" else rng.randint(1, 12)


def _apply(value: int, sign: str, n: int) -> int:
    return {"+": value + n, "-": value - n, "*": value * n}[sign]
