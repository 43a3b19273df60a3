"""What a candidate would score on all items, from a few of them (item response theory).

Every item has a curve: the chance that a model of ability θ answers it,

    p(θ) = σ(a (θ − b)),    discrimination a > 0, difficulty b        (two-parameter logistic)

fitted from the scores of the family's own single models. A candidate's score on all items is then
its score on those seen and the mean of the curves of the others at its ability (p-IRT;
tinyBenchmarks, arXiv 2402.14992). Its ability is a mixture of its parents' abilities, and only the
mixture is fitted on the items seen (MERGE³, arXiv 2502.10436), task by task with shared shares.

Where this differs from the two papers. They fit curves on hundreds of models; a family has a
handful, so that everything here is a posterior mode under priors, and no column of equal answers
runs away. The mixture is drawn to the candidate's own coefficients. And a merge may be better at a
task than any mixture of its parents, so that each task has a shift of its own, drawn to none.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelglue.errors import EvaluationError
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.search.knobs import EVERY_MODEL, WEIGHT, Knob
from modelglue.search.problem import Coefficients, Trial

Array = NDArray[np.float64]

# Priors, in logits. Abilities set the scale. Discrimination is known badly from few models.
_ABILITY = 1.0
_DISCRIMINATION, _DISCRIMINATION_SPREAD, _LEAST_DISCRIMINATION = 1.0, 0.4, 0.2
_EASINESS_SPREADS = (0.5, 3.0)
# How far the shares of a mixture stray from the coefficients, and the ability from the mixture.
_SHARE_SPREAD, _SHIFT_SPREAD = 0.5, 0.7
_SWEEPS, _STEPS = 150, 30


@dataclass(frozen=True)
class Curves:
    """The curves of one task's items and the abilities of the models that they were fitted from.

    Attributes:
        items: the items' ids.
        discrimination: a of each item.
        easiness: −a·b of each item, so that p(θ) = σ(aθ + easiness).
        abilities: θ by model.
    """

    task: str
    items: tuple[str, ...]
    discrimination: Array
    easiness: Array
    abilities: Mapping[str, float]

    @property
    def difficulty(self) -> Array:
        """b of each item: the ability at which half of the answers are right."""
        return -self.easiness / self.discrimination

    def chances(self, ability: float) -> Array:
        """The chance of each item at an ability."""
        return _logistic(self.discrimination * ability + self.easiness)


def fit(singles: Mapping[str, Scores]) -> tuple[Curves, ...]:
    """The curves of every task's items.

    Args:
        singles: scores by model on all items; a score between 0 and 1 counts as that share of a
            right answer.

    Raises:
        EvaluationError: there is no model, or they were not scored on the same items.
    """
    if not singles:
        raise EvaluationError("no single model was scored; curves are fitted from their scores")
    first = next(iter(singles.values()))
    return tuple(_fit_task(task, singles) for task in first.tasks)


def estimator(singles: Mapping[str, Scores]) -> Callable[[Coefficients, Trial], float]:
    """A function from a candidate and its trial on some items to its mean on all of them.

    The mean of a task is λ · mean(seen) + (1 − λ) · mean(p̂ of the unseen) with λ the share of its
    items that were seen, as in p-IRT: what was seen needs no guess. The mean of the tasks' means is
    returned; −∞ for a trial that failed.

    Args:
        singles: as of `fit`, in the order in which the models are merged.

    Raises:
        EvaluationError: as `fit`; when the function is called, a trial has items without a curve.
    """
    curves = fit(singles)
    models = tuple(singles)
    parents = np.array([[c.abilities[model] for model in models] for c in curves])

    def estimate(coefficients: Coefficients, trial: Trial) -> float:
        if trial.scores is None:
            return -math.inf
        seen = [_Seen.of(c, trial.scores) for c in curves]
        abilities = _abilities(parents, shares_of(coefficients, models), curves, seen)
        means = [
            _mean(one, c.chances(ability))
            for one, c, ability in zip(seen, curves, abilities, strict=True)
        ]
        return math.fsum(means) / len(means)

    return estimate


def shares_of(coefficients: Coefficients, models: tuple[str, ...]) -> Array:
    """What share of a candidate each model has, going by its coefficients; they sum to 1.

    The mean over groups of its weights, or the number of its layers. Of two models with a `t`
    between them the second has t, and the weights say only which two they are. Where the
    coefficients say nothing of the models, all have the same.

    Args:
        models: in the order in which they are merged.

    >>> shares_of({"a [x]": 0.5, "b [x]": 0.5, "a [y]": 1.0}, ("a", "b", "c")).tolist()
    [0.75, 0.25, 0.0]
    >>> shares_of({"a": 0.5, "c": 0.5, "t of *": 0.75}, ("c", "b", "a")).tolist()
    [0.25, 0.0, 0.75]
    """
    shares, between = dict.fromkeys(models, 0.0), list[float]()
    for name, number in coefficients.items():
        knob = Knob.parse(name)
        if knob.model == EVERY_MODEL and knob.parameter == "t":
            between.append(number)
        elif knob.model not in shares:
            continue
        elif knob.parameter == WEIGHT:
            shares[knob.model] += number
        elif knob.parameter.startswith("place "):
            shares[knob.model] += 1.0
    if between and len(two := [model for model in models if shares[model]]) == 2:
        t = math.fsum(between) / len(between)
        shares.update(zip(two, (1 - t, t), strict=True))
    total = math.fsum(shares.values())
    # Where weights nearly cancel, parts of their sum are far from anything that a share can be.
    if total <= 0.5 * math.fsum(map(abs, shares.values())):
        return np.full(len(models), 1 / len(models))
    return np.array([shares[model] / total for model in models])


@dataclass(frozen=True)
class _Seen:
    """Which of a task's items a candidate was scored on (indices), and what it scored."""

    at: NDArray[np.int64]
    values: Array

    @classmethod
    def of(cls, curves: Curves, scores: Scores) -> "_Seen":
        place = {item: n for n, item in enumerate(curves.items)}
        for task in scores.tasks:
            if task.task == curves.task:
                if unknown := [item for item in task.items if item not in place]:
                    raise EvaluationError(f"task {task.task}: no model was scored on {unknown[0]}")
                return cls(np.array([place[i] for i in task.items]), np.array(task.values))
        return cls(np.empty(0, dtype=np.int64), np.empty(0))


def _mean(seen: _Seen, chances: Array) -> float:
    unseen = np.ones(len(chances), dtype=bool)
    unseen[seen.at] = False
    return float((seen.values.sum() + chances[unseen].sum()) / len(chances))


def _fit_task(task: TaskScores, singles: Mapping[str, Scores]) -> Curves:
    """The posterior mode of abilities and curves together, one after the other in turns."""
    answers = np.array([_answers(task, model, scores) for model, scores in singles.items()])
    abilities = np.zeros(len(answers))
    slopes = np.full(len(task.items), _DISCRIMINATION)
    centre, spread = _logit(float(answers.mean())), 1.5
    easiness = np.full(len(task.items), centre)
    for _ in range(_SWEEPS):
        logits = abilities[:, None] * slopes + easiness
        weights = _curvature(logits)
        pull = ((answers - 0.5 - weights * easiness) * slopes).sum(axis=1)
        abilities = pull / ((weights * slopes**2).sum(axis=1) + 1 / _ABILITY**2)
        slopes, easiness, doubt = _items(answers, abilities, slopes, easiness, centre, spread)
        centre = float(easiness.mean())
        spread = float(np.sqrt(np.mean((easiness - centre) ** 2 + doubt)))
        spread = min(max(spread, _EASINESS_SPREADS[0]), _EASINESS_SPREADS[1])
    names = dict(zip(singles, abilities.tolist(), strict=True))
    return Curves(task.task, task.items, slopes, easiness, names)


def _items(
    answers: Array, abilities: Array, slopes: Array, easiness: Array, centre: float, spread: float
) -> tuple[Array, Array, Array]:
    """One step for every item's slope and easiness: a 2 × 2 system each.

    Returns them with the variance of the easiness.
    """
    column = abilities[:, None]
    weights = _curvature(column * slopes + easiness)
    aa = (weights * column**2).sum(axis=0) + 1 / _DISCRIMINATION_SPREAD**2
    ae = (weights * column).sum(axis=0)
    ee = weights.sum(axis=0) + 1 / spread**2
    right = ((answers - 0.5) * column).sum(axis=0) + _DISCRIMINATION / _DISCRIMINATION_SPREAD**2
    constant = (answers - 0.5).sum(axis=0) + centre / spread**2
    slopes = np.maximum((ee * right - ae * constant) / (aa * ee - ae**2), _LEAST_DISCRIMINATION)
    # The best easiness for these slopes, which may stand at their least.
    return slopes, (constant - ae * slopes) / ee, aa / (aa * ee - ae**2)


def _abilities(
    parents: Array, shares: Array, curves: tuple[Curves, ...], seen: list[_Seen]
) -> Array:
    """A candidate's abilities: parents [tasks, models] mixed, the mixture fitted on what was seen.

    θ = parents (shares + δ) + shift, δ ~ N(0, _SHARE_SPREAD²), shift ~ N(0, _SHIFT_SPREAD²).
    """
    expected = parents @ shares
    tasks = np.repeat(np.arange(len(curves)), [len(one.at) for one in seen])
    slopes = np.concatenate([c.discrimination[one.at] for c, one in zip(curves, seen, strict=True)])
    easiness = np.concatenate([c.easiness[one.at] for c, one in zip(curves, seen, strict=True)])
    values = np.concatenate([one.values for one in seen])
    # Each task's ability as the sum of what is expected and of two kinds of departure from it.
    ways = np.concatenate([parents * _SHARE_SPREAD, np.eye(len(curves)) * _SHIFT_SPREAD], axis=1)
    design = slopes[:, None] * ways[tasks]
    offset = slopes * expected[tasks] + easiness
    departure = np.zeros(ways.shape[1])
    for _ in range(_STEPS):
        weights = _curvature(offset + design @ departure)
        left = design.T @ (weights[:, None] * design) + np.eye(len(departure))
        departure = np.linalg.solve(left, design.T @ (values - 0.5 - weights * offset))
    return expected + ways @ departure


def _answers(task: TaskScores, model: str, scores: Scores) -> Array:
    known = {t.task: dict(zip(t.items, t.values, strict=True)) for t in scores.tasks}
    answers = known.get(task.task, {})
    if answers.keys() != set(task.items):
        raise EvaluationError(f"{model} was scored on other items of {task.task} than the others")
    return np.clip([answers[item] for item in task.items], 0.0, 1.0)


def _curvature(logits: Array) -> Array:
    """tanh(η / 2) / 2η, for steps that always climb and need no length.

    The quadratic of this curvature that touches the log-likelihood at η stays below it everywhere
    (Jaakkola & Jordan, 2000).
    """
    small = np.abs(logits) < 1e-4
    safe = np.where(small, 1.0, logits)
    return np.where(small, 0.25, np.tanh(safe / 2) / (2 * safe))


def _logistic(logits: Array) -> Array:
    return (np.tanh(logits / 2) + 1) / 2


def _logit(share: float) -> float:
    inside = min(max(share, 0.01), 0.99)
    return math.log(inside / (1 - inside))
