"""A family that can be evaluated in microseconds: items with two-parameter curves, smooth merges.

Three tasks of items in groups. A candidate's ability at a task falls with the distance of its
numbers from the task's best ones; whether it answers an item depends on that, on the item, and on a
smooth random function of the candidate of the item's own, so that near candidates answer alike and
a search can overfit the items, as with real models.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.search.problem import Dials, Problem, Trial, Tried, search
from modelglue.search.racing import Race, race

TASKS = ("knowledge", "maths", "code")


@dataclass(frozen=True)
class Items:
    """The items of one task: difficulty, and the weights of their own smooth functions."""

    difficulty: np.ndarray  # [n]
    own: np.ndarray  # [n, 2 · features]
    groups: np.ndarray  # [n]


class Family:
    """Candidates are numbers x0 … of dimension `size`; best near 0.3 each, differently by task."""

    def __init__(self, seed: int, *, size: int = 5, own: float = 0.9, width: float = 4.0) -> None:
        self._generator = np.random.default_rng([seed, 0])
        self.size = size
        self._own = own
        self._waves = self._generator.normal(0, width / np.sqrt(size), (24, size))
        self._best = {t: self._generator.normal(0.3, 0.2, size) for t in TASKS}
        self._curve = {t: self._generator.uniform(1.0, 2.5) for t in TASKS}

    def items(self, task: str, number: int, *, group: int = 4) -> Items:
        """Items drawn anew."""
        draw = self._generator.normal
        groups = np.arange(number) // group
        shared, mine = np.sqrt(0.5), np.sqrt(0.5)
        waves = 2 * len(self._waves)
        of_groups = draw(0, 1, (groups[-1] + 1, waves))[groups]
        own = (shared * of_groups + mine * draw(0, 1, (number, waves))) / np.sqrt(waves / 2)
        difficulty = draw(0, 1.0, groups[-1] + 1)[groups] + draw(0, 0.8, number)
        return Items(difficulty, self._own * own, groups)

    def correct(self, task: str, items: Items, x: np.ndarray) -> np.ndarray:
        """Which items a candidate answers, as 0 and 1."""
        off = x - self._best[task]
        ability = 1.2 - self._curve[task] * np.sqrt(off @ off + 0.04)
        phase = self._waves @ x
        own = items.own @ np.concatenate([np.cos(phase), np.sin(phase)])
        return (ability - items.difficulty + own > 0).astype(float)


class Specialists(Family):
    """Weights that sum to 1: three of the models are good at a task each, the last one harms."""

    def __init__(self, seed: int, *, size: int = 6) -> None:
        super().__init__(seed, size=size)
        shared = self._generator.dirichlet(np.ones(size - 1))
        for own, task in enumerate(TASKS):
            self._best[task] = np.append(0.65 * shared + 0.35 * np.eye(size - 1)[own], 0.0)
        # The last model's weight does four times as much harm as another's.
        self._scale = np.append(np.ones(size - 1), 4.0)

    def correct(self, task: str, items: Items, x: np.ndarray) -> np.ndarray:
        best = self._best[task]
        return super().correct(task, items, best + self._scale * (x - best))


class SimulatedObjective:
    """The items of a family in blocks; counts the item evaluations that are asked for."""

    def __init__(
        self, family: Family, *, items: int = 200, group: int = 4, blocks: int = 3
    ) -> None:
        self.family = family
        self.blocks = blocks
        self.asked = 0
        self._items = {t: family.items(t, items, group=group) for t in TASKS}
        self._report = {t: family.items(t, 2000, group=1) for t in TASKS}
        self._block = {t: self._blocks_of(i.groups) for t, i in self._items.items()}
        self.items = tuple(
            sum(int((b == k).sum()) for b in self._block.values()) for k in range(blocks)
        )

    def __call__(self, coefficients: Mapping[str, float]) -> Trial:
        return self.many([coefficients])[0]

    def many(
        self, candidates: Sequence[Mapping[str, float]], block: int | None = None
    ) -> list[Trial]:
        return [Trial(self._scores(self._place(c), block)) for c in candidates]

    def truth(self, coefficients: Mapping[str, float]) -> float:
        """The mean on items that no search sees."""
        x = self._place(coefficients)
        return float(
            np.mean([self.family.correct(t, i, x).mean() for t, i in self._report.items()])
        )

    def _blocks_of(self, groups: np.ndarray) -> np.ndarray:
        # As `cut` does, each block but the first is as large as all before it.
        turn = np.random.default_rng(len(groups)).permutation(groups[-1] + 1)
        ends = len(turn) * 0.5 ** np.arange(self.blocks)[::-1]
        return np.searchsorted(ends, turn, side="right")[groups]

    def _place(self, coefficients: Mapping[str, float]) -> np.ndarray:
        return np.array([coefficients.get(f"m{n}", 0.0) for n in range(self.family.size)])

    def _scores(self, x: np.ndarray, block: int | None) -> Scores:
        tasks = []
        for task, items in self._items.items():
            values = self.family.correct(task, items, x)
            chosen = np.flatnonzero((self._block[task] == block) | (block is None))
            self.asked += len(chosen)
            tasks.append(
                TaskScores(
                    task,
                    tuple(f"{task} {n}" for n in chosen),
                    tuple(values[chosen].tolist()),
                    tuple(f"group {items.groups[n]}" for n in chosen),
                )
            )
        return Scores(tuple(tasks))


def as_candidate(x: np.ndarray) -> dict[str, float]:
    """The numbers by name."""
    return {f"m{n}": float(value) for n, value in enumerate(x)}


def generation(objective: SimulatedObjective, seed: int, *, members: int = 8) -> list[dict]:
    """Candidates about ten points apart from best to worst."""
    draw = np.random.default_rng([seed, 1]).normal
    return [as_candidate(draw(0.3, 0.13, objective.family.size)) for _ in range(members)]


@dataclass(frozen=True)
class Raced:
    """A race, what its candidates score on all items, and the item evaluations asked for."""

    result: Race
    means: list[float]
    asked: int

    @property
    def survivors(self) -> list[int]:
        return [n for n, out in enumerate(self.result.stopped) if not out]

    @property
    def used(self) -> float:
        """The share of the item evaluations of full evaluation."""
        return self.result.items / (600 * len(self.means))

    @property
    def lost(self) -> bool:
        """Whether the one that is best on all items was stopped."""
        return max(self.means[n] for n in self.survivors) < max(self.means)


def simulated_races(seeds: Iterable[int], level: float = 0.1) -> list[Raced]:
    """Races of different families."""
    found = []
    for seed in seeds:
        objective = SimulatedObjective(Family(seed))
        field = generation(objective, seed)
        means = [trial.mean for trial in objective.many(field)]
        objective.asked = 0
        result = race(objective, field, level=level, best=None, told=[])
        found.append(Raced(result, means, objective.asked))
    return found


WAYS: dict[str, dict[str, Any]] = {
    "racing": {},
    "racing with 2 stages": {"stages": 2},
    "racing with 3 stages": {"stages": 3},
    "racing with curves": {"proxy": "irt"},
    "no racing": {"racing": "off"},
}
"""Options of the evolution."""


def climb(seed: int, options: Mapping[str, Any], *, models: int = 6) -> np.ndarray:
    """The best score on all items that 60 trials among specialists had after each of them."""
    objective = SimulatedObjective(Specialists(seed, size=models))
    seen: dict[str, float] = {}

    def tell(tried: Sequence[Tried]) -> None:
        for one in tried:
            seen.setdefault(str(one.coefficients), one.value)

    names = tuple(as_candidate(np.zeros(models)))
    problem = Problem(
        names,
        objective,
        lambda coefficients, name: 0.0,
        dials=Dials(),
        options={"trials": 60, "racing": "off", **options},
        seed=seed,
        tell=tell,
    )
    search("evolution", problem)
    return np.maximum.accumulate(list(seen.values()))


def evolve(seed: int, way: str, *, drawn: int = 64) -> tuple[float, int]:
    """What an evolution of so many candidates drawn is worth on unseen items, and what it took."""
    objective = SimulatedObjective(Family(seed))
    names = tuple(as_candidate(np.zeros(objective.family.size)))
    options = {"trials": len(names) + 1 + drawn, **WAYS[way]}
    result = search(
        "evolution",
        Problem(
            names,
            objective,
            lambda coefficients, name: 0.0,
            dials=Dials(normalised=False),
            options=options,
            seed=seed,
        ),
    )
    return objective.truth(result.coefficients), result.items


def compare(seeds: int, way: str) -> tuple[float, float, float]:
    """A way against full evaluation: share of items, loss on unseen items, its standard error."""
    full = [evolve(seed, "no racing") for seed in range(seeds)]
    raced = [evolve(seed, way) for seed in range(seeds)]
    loss = np.array([a[0] - b[0] for a, b in zip(full, raced)])
    used = np.mean([b[1] / a[1] for a, b in zip(full, raced)])
    return used, loss.mean(), loss.std(ddof=1) / math.sqrt(seeds)
