"""Answers of models whose ability at each task is known."""

import numpy as np

from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.search.accept import judge
from modelglue.search.irt import estimator
from modelglue.search.problem import Trial

TASKS, ITEMS = 3, 200


def scores_of(columns: np.ndarray, items: np.ndarray | None = None) -> Scores:
    """Scores [tasks, items], at some items only if these are named [tasks, some]."""
    tasks = []
    for number, column in enumerate(columns):
        at = np.arange(len(column)) if items is None else items[number]
        ids = tuple(f"i{n}" for n in at)
        tasks.append(TaskScores(f"task{number}", ids, tuple(column[at].tolist())))
    return Scores(tuple(tasks))


class World:
    """Items with two-parameter curves, and a zoo that answered them."""

    def __init__(self, seed: int, *, models: int = 6) -> None:
        self.draw = np.random.default_rng(seed)
        self.slopes = np.exp(self.draw.normal(0.2, 0.3, (TASKS, ITEMS)))
        self.difficulty = self.draw.normal(0, 2, (TASKS, ITEMS))
        self.abilities = self.draw.normal(0, 1, (models, TASKS))
        self.singles = {f"m{n}": scores_of(self.answers(a)) for n, a in enumerate(self.abilities)}

    def answers(self, ability: np.ndarray) -> np.ndarray:
        logits = self.slopes * (ability[:, None] - self.difficulty)
        return (self.draw.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)

    def candidate(self) -> tuple[dict[str, float], np.ndarray]:
        """A merge, a little better than the mixture of its parents, and its answers."""
        weights = self.draw.dirichlet(np.ones(len(self.abilities)))
        ability = weights @ self.abilities + self.draw.normal(0.2, 0.3, TASKS)
        return {f"m{n}": w for n, w in enumerate(weights)}, self.answers(ability)

    def some(self, share: float) -> np.ndarray:
        number = int(ITEMS * share)
        return np.array([self.draw.permutation(ITEMS)[:number] for _ in range(TASKS)])


def errors(world: World, number: int, share: float) -> tuple[list[float], list[float]]:
    """Errors of the estimates and of the plain means of the items seen."""
    estimate = estimator(world.singles)
    mine, plain = [], []
    for _ in range(number):
        coefficients, answers = world.candidate()
        seen = scores_of(answers, world.some(share))
        mine.append(estimate(coefficients, Trial(seen)) - answers.mean())
        plain.append(seen.mean - answers.mean())
    return mine, plain


def rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def models(draw: np.random.Generator, *gains: float, items: int = 100) -> list[Scores]:
    """Models that agree on most items (a quarter is open), better than 0.6 by these gains."""
    shared = draw.random((TASKS, items))
    is_open = draw.random((TASKS, items)) < 0.25
    found = []
    for gain in gains:
        mine = np.where(is_open, draw.random((TASKS, items)), shared)
        found.append(scores_of((mine < 0.6 + gain).astype(float)))
    return found


def accepted(number: int, *gains: float, level: float, finalists: int = 1) -> int:
    """In how many of so many draws a candidate (of the first gain) is accepted over the others."""
    draw = np.random.default_rng(0)
    count = 0
    for _ in range(number):
        drawn = models(draw, *gains[:1] * finalists, *gains[1:])
        rivals = {f"rival {n}": rival for n, rival in enumerate(drawn[finalists:])}
        count += any(
            judge(each, rivals, level=level, looks=finalists, tried=1, resamples=400).accepted
            for each in drawn[:finalists]
        )
    return count
