"""Intervals and tests for scores, paired where two models answered the same items.

Everything resamples *groups* (items that stand or fall together) within each task, and the mean of
the tasks' means is what is estimated. Random numbers are keyed by (seed, task name): neither the
order of the tasks nor of the items changes a result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from modelglue.errors import EvaluationError
from modelglue.evaluate.scores import Scores, TaskScores

Array = NDArray[np.float64]
# Resampled indices held at once: bounds memory at 32 MB whatever the number of groups.
_CHUNK = 4_000_000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def paired_difference(
    a: Scores, b: Scores, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """How much better `a` is than `b`: the mean over tasks of the paired differences a − b.

    Percentile bootstrap over groups within each task, the spread scaled by √(G / (G − 1)) for G
    groups, since resampling underestimates a variance by that factor. Where a task has one group,
    nothing is known about its spread and the interval is all that is possible, [−1, 1]; no
    interval is wider than that.

    Raises:
        EvaluationError: `a` and `b` are not scores of the same items of the same tasks.
    """
    columns = [_grouped(task, difference) for task, difference in _pairs(a, b)]
    return _bootstrap(columns, level, resamples, seed, widest=(-1.0, 1.0))


def mean_interval(
    scores: Scores, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean over tasks with its interval; as `paired_difference`, at widest [0, 1]."""
    columns = [_grouped(task, np.asarray(task.values)) for task in sorted(scores.tasks, key=_name)]
    return _bootstrap(columns, level, resamples, seed, widest=(0.0, 1.0))


def paired_test(a: Scores, b: Scores, *, resamples: int = 10_000, seed: int = 0) -> float:
    """The p-value of "`a` is no better than `b`": a one-sided sign-flip test by group.

    If the two were equally good, each group's difference could as well have had the other sign;
    p = (1 + how many of the flipped means reach the observed one) / (1 + resamples), which is
    valid at any number of groups (Phipson & Smyth, 2010).

    Raises:
        EvaluationError: `a` and `b` are not scores of the same items of the same tasks.
    """
    return paired_comparison(a, b, level=0.05, resamples=resamples, seed=seed)[1]


def paired_comparison(
    a: Scores, b: Scores, *, level: float, resamples: int = 10_000, seed: int = 0
) -> tuple[Interval, float]:
    """The difference a − b with the interval that belongs to `paired_test`, and the p of the test.

    The test inverted: the ends are the differences that a one-sided test at `level` only just
    allows, so the interval lies above 0 if and only if p ≤ level. With M and k the sums over the
    tasks of the mean differences and of 1, and A and B the same after a draw of signs, the draw
    reaches what is observed, if δ is taken off every difference, from δ = (M − A) / (k − B) on. So
    the ends are order statistics of that (Hartigan's typical values, 1969); at widest [−1, 1].

    Args:
        level: of either end, below ½; the interval misses twice as much.

    Raises:
        EvaluationError: `a` and `b` are not scores of the same items of the same tasks.
    """
    columns = [_grouped(task, difference) for task, difference in _pairs(a, b)]
    observed = math.fsum(column.mean for column in columns)
    left = np.tile([observed, float(len(columns))], (resamples, 1))  # M − A, k − B
    for column in columns:
        generator = _generator(seed, column.task)
        size = len(column.sums)
        shares = np.stack([column.sums, column.counts], axis=1) / column.counts.sum()
        for rows in _row_chunks(resamples, size):
            signs = generator.integers(0, 2, (rows.stop - rows.start, size)) * 2.0 - 1.0
            left[rows] -= signs @ shares
    # Equal sums differ in their last bits by the order of adding; they must count as reached.
    left[np.abs(left) <= 1e-12] = 0.0
    gaps, turned = left.T
    whole = turned == 0  # no sign was turned: it reaches what is observed whatever is taken off
    begins = gaps / np.where(whole, 1.0, turned)
    p_values = np.arange(1, resamples + 2) / (1 + resamples)
    rank = int(np.count_nonzero(p_values <= level))
    low, high = -1.0, 1.0
    if rank:
        low = max(low, float(np.sort(np.where(whole, -np.inf, begins))[rank - 1]))
        high = min(high, float(np.sort(np.where(whole, np.inf, begins))[resamples - rank]))
    mean = observed / len(columns)
    p = float(p_values[np.count_nonzero(gaps <= 0)])
    return Interval(mean, min(low, mean), max(high, mean)), p


@dataclass(frozen=True)
class Lead:
    """How far ahead one model is of another on the items that both were scored on.

    Attributes:
        mean: the mean over tasks of the paired differences.
        variance: of it, if each group's difference had a random sign.
    """

    mean: float
    variance: float

    def score(self, seen: float) -> float:
        """Standard errors between this lead and none, when a share `seen` of all items is seen.

        The seen are a draw from all without replacement, so the lead on all items is nearer to the
        lead on the seen than another such draw would be: the variance of their difference is
        (1 − seen) times that of the lead (Cochran, Sampling Techniques, 1977, 2.5).
        """
        if self.mean == 0:
            return 0.0
        spread = math.sqrt(self.variance * (1 - seen))
        return self.mean / spread if spread else math.copysign(math.inf, self.mean)


def paired_lead(a: Scores, b: Scores) -> Lead:
    """The lead of `a` over `b` with its variance under the null of the sign-flip test.

    With d the summed differences of a group, n the items of a task, T the tasks and G the groups
    that differ, the variance is Σ_tasks Σ_groups d² / n² / T² · (1 + 1 / G). Nothing is subtracted
    from d, as all signs are open under the null (self-normalised sums; Efron, 1969). The last
    factor counts one more group like these: without it, two or three groups that happen to agree
    would look surer than counting their signs allows.

    Raises:
        EvaluationError: `a` and `b` are not scores of the same items of the same tasks.
    """
    columns = [_grouped(task, difference) for task, difference in _pairs(a, b)]
    mean = math.fsum(column.mean for column in columns) / len(columns)
    differing = sum(np.count_nonzero(column.sums) for column in columns)
    if not differing:
        return Lead(0.0, 0.0)
    variances = [float(np.sum((column.sums / column.counts.sum()) ** 2)) for column in columns]
    return Lead(mean, math.fsum(variances) / len(columns) ** 2 * (1 + 1 / differing))


@lru_cache(maxsize=256)
def looks_boundary(level: float, seen: tuple[float, ...]) -> float:
    """The boundary that a standardised lead may cross by luck, at any of several looks.

    Models that are equal on all items drift apart while some are unseen: the lead after a share s
    is a Brownian bridge, whose standardised value is that of a Brownian motion at time
    s / (1 − s). Returned is Pocock's (1977) constant c with P(max over the looks > c) = level, by
    the recursion of Armitage, McPherson & Rowe (1969) on Gauss–Legendre nodes.

    Args:
        level: one-sided, in (0, 0.5].
        seen: the share of the items seen at each look, rising, within (0, 1).
    """
    if not 0 < level <= 0.5:
        raise ValueError(f"level is {level}, it must lie above 0 and not above 0.5")
    if not seen or any(not 0 < share < 1 for share in seen) or list(seen) != sorted(set(seen)):
        raise ValueError(f"looks at {seen} are not rising shares between 0 and 1")
    times = [share / (1 - share) for share in seen]
    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _crossed(middle, times) > level else (low, middle)
    return high


def _crossed(boundary: float, times: Sequence[float]) -> float:
    """The chance that a standardised Brownian motion is above the boundary at any of the times."""
    at = (_NODES + 1) / 2 * (boundary + 8) - 8
    weights = _WEIGHTS * (boundary + 8) / 2
    density = _normal(at)
    for before, now in pairwise(times):
        step = math.sqrt(now - before)
        moved = (at[:, None] * math.sqrt(now) - at * math.sqrt(before)) / step
        density = _normal(moved) @ (weights * density) * math.sqrt(now) / step
    return 1 - float(weights @ density)


def _normal(at: Array) -> Array:
    density: Array = np.exp(-(at**2) / 2) / math.sqrt(2 * math.pi)
    return density


def shrunken(
    means: Sequence[float], variances: Sequence[float], *, others: Sequence[float] = ()
) -> list[float]:
    """Means that are known with unequal precision, drawn together as far as luck parts them.

    Empirical Bayes for normal means (Efron & Morris, 1973): with m the mean of all of them, v
    the variance of one, τ² = max(0, variance of the means − mean of v), each becomes
    m + τ² / (τ² + v) · (mean − m). One that is known exactly (v = 0) stays.

    Args:
        means: what was measured.
        variances: of each.
        others: more means of the same kind, known exactly.
    """
    everything = np.array([*means, *others], dtype=np.float64)
    doubt = np.array([*variances, *(0.0 for _ in others)], dtype=np.float64)
    centre = float(everything.mean())
    spread = max(0.0, float(everything.var(ddof=1) - doubt.mean())) if len(everything) > 1 else 0.0
    return [
        mean if v == 0 else float(centre + spread / (spread + v) * (mean - centre))
        for mean, v in zip(means, variances, strict=True)
    ]


@dataclass(frozen=True)
class _Column:
    """One task's numbers, summed within each group; groups sorted by name."""

    task: str
    sums: Array
    counts: Array

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.counts.sum())


def _pairs(a: Scores, b: Scores) -> list[tuple[TaskScores, Array]]:
    """Per task of `a`: its scores and the differences to `b`, matched by id."""
    mine, theirs = {t.task for t in a.tasks}, {t.task for t in b.tasks}
    if mine != theirs:
        differing = ", ".join(sorted(mine ^ theirs))
        raise EvaluationError(f"only one of the two models was scored on {differing}")
    pairs = []
    for task in sorted(a.tasks, key=_name):
        other = b[task.task]
        values = dict(zip(other.items, other.values, strict=True))
        if values.keys() != set(task.items):
            raise EvaluationError(f"the two models were scored on different items of {task.task}")
        matched = [values[item] for item in task.items]
        pairs.append((task, np.asarray(task.values) - np.asarray(matched)))
    return pairs


def _name(task: TaskScores) -> str:
    return task.task


def _grouped(task: TaskScores, numbers: Array) -> _Column:
    names, index = np.unique(np.asarray(task.groups), return_inverse=True)
    sums = np.bincount(index, weights=numbers, minlength=len(names)).astype(np.float64)
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    return _Column(task.task, sums, counts)


def _bootstrap(
    columns: Sequence[_Column],
    level: float,
    resamples: int,
    seed: int,
    *,
    widest: tuple[float, float],
) -> Interval:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}, it must lie between 0 and 1")
    if not columns:
        raise EvaluationError("no tasks were scored")
    mean = math.fsum(column.mean for column in columns) / len(columns)
    if any(len(column.sums) == 1 for column in columns):
        return Interval(mean, *widest)
    means = np.zeros(resamples)
    for column in columns:
        size = len(column.sums)
        drawn = _resampled_means(column, resamples, _generator(seed, column.task))
        means += column.mean + (drawn - column.mean) * math.sqrt(size / (size - 1))
    low, high = np.quantile(means / len(columns), [(1 - level) / 2, (1 + level) / 2])
    # Where all resamples agree, rounding alone must not put the mean outside its interval; where
    # groups are few, the scaling must not put an end beyond what is possible.
    lowest, highest = widest
    return Interval(mean, max(min(float(low), mean), lowest), min(max(float(high), mean), highest))


def _resampled_means(column: _Column, resamples: int, generator: np.random.Generator) -> Array:
    size = len(column.sums)
    means = np.empty(resamples)
    for rows in _row_chunks(resamples, size):
        drawn = generator.integers(0, size, (rows.stop - rows.start, size))
        means[rows] = column.sums[drawn].sum(axis=1) / column.counts[drawn].sum(axis=1)
    return means


def _row_chunks(rows: int, columns: int) -> list[slice]:
    step = max(1, _CHUNK // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _generator(seed: int, task: str) -> np.random.Generator:
    digest = blake2b(f"{seed}\0{task}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
