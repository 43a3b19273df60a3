"""Accepting a merge, or saying plainly that none helps.

A search proposes what did best on the search items, and the best of many is better there than it
really is. So a finalist is put to the test on validation items that no search has seen, against
every model that could be kept instead. It is accepted only if paired tests say that it is better
than each of them (an intersection–union test: the largest p decides, and needs no correction for
the number of rivals; Berger, 1982), at a level divided by the number of finalists that were put to
the test on these items (Bonferroni).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelglue.evaluate.scores import Scores
from modelglue.evaluate.statistics import Interval, paired_comparison

# A p-value by resampling is a multiple of 1 / (1 + resamples): the level must be many of them, or
# the test could not tell "below" from "about".
_RESAMPLES, _PER_LEVEL = 10_000, 50
_TOLD = 2
"""Rivals that the words of a verdict name."""


@dataclass(frozen=True)
class Comparison:
    """The candidate against one rival on the validation items.

    Attributes:
        rival: its name.
        difference: how much better the candidate is, with the interval that the test gives.
        p: of "the candidate is no better".
    """

    rival: str
    difference: Interval
    p: float


@dataclass(frozen=True)
class Verdict:
    """Whether a merge is accepted, and on what grounds.

    Attributes:
        accepted: whether it is better than every rival.
        level: the chance, at most, of accepting one that is not, over all looks.
        looks: how many finalists are put to the test on the same items.
        tried: how many candidates were tried on the search items.
        comparisons: one a rival; the first is the best single model.
    """

    accepted: bool
    level: float
    looks: int
    tried: int
    comparisons: tuple[Comparison, ...]

    @property
    def threshold(self) -> float:
        """What the largest p may be: the level, corrected for the looks."""
        return self.level / self.looks

    def words(self) -> str:
        """The verdict in plain sentences."""
        if self.accepted:
            return f"The merge is better than {self._nearest(self.comparisons)}. {self._effort()}"
        failed = [each for each in self.comparisons if each.p > self.threshold]
        return (
            f"No merge helps here: the best single model, {self.comparisons[0].rival}, stays. The "
            "merge that was put to the test is not shown to be better than "
            f"{self._nearest(failed)}. {self._effort()}"
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return {
            **vars(self),
            "comparisons": [
                {"rival": c.rival, "difference": dict(vars(c.difference)), "p": c.p}
                for c in self.comparisons
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Verdict":
        """What `to_json` gave."""
        comparisons = tuple(
            Comparison(c["rival"], Interval(**c["difference"]), c["p"])
            for c in value["comparisons"]
        )
        return cls(**{**value, "comparisons": comparisons})

    def _nearest(self, comparisons: Sequence[Comparison]) -> str:
        """The rivals that come nearest to the merge, and how many more there are."""
        ordered = sorted(comparisons, key=lambda each: (-each.p, each.difference.mean))
        told = [
            f"{each.rival} ({_points(each.difference.mean)} points, {_percent(2 * self.threshold)} "
            f"interval {_points(each.difference.low)} to {_points(each.difference.high)}, "
            f"{_p_value(each.p, self.threshold)})"
            for each in ordered[:_TOLD]
        ]
        if rest := len(ordered) - len(told):
            told.append(f"{rest} other{'s' if rest > 1 else ''}")
        return " and ".join(told)

    def _effort(self) -> str:
        tried = "1 candidate was" if self.tried == 1 else f"{self.tried} candidates were"
        looks = "1 was" if self.looks == 1 else f"{self.looks} were"
        return f"{tried} tried, {looks} put to the test."


def judge(
    candidate: Scores,
    rivals: Mapping[str, Scores],
    *,
    level: float,
    looks: int,
    tried: int,
    resamples: int | None = None,
) -> Verdict:
    """Whether a finalist is better than every rival on the validation items.

    Each comparison is a one-sided sign-flip test by group at level / looks, with the two-sided
    interval of 1 − 2 · level / looks that the same test gives: it lies above 0 where the test says
    that the candidate is better, and nowhere else.

    Args:
        candidate: its scores on the validation items.
        rivals: of everything that could be kept instead, by name; the best single model first.
        level: the chance, at most, of accepting a merge that is no better, over all looks.
        looks: how many finalists are put to the test on these items.
        tried: how many candidates were tried in the search, for the record.
        resamples: of tests and intervals; by default enough for the level.

    Raises:
        EvaluationError: they were not scored on the same items.
    """
    if not 0 < level < 0.5:
        raise ValueError(f"level is {level}, it must lie between 0 and 0.5")
    if looks < 1 or not rivals:
        raise ValueError(f"{looks} looks at {len(rivals)} rivals: at least one of each is needed")
    threshold = level / looks
    number = resamples or max(_RESAMPLES, math.ceil(_PER_LEVEL / threshold))
    if 1 / (1 + number) > threshold:
        raise ValueError(f"{number} resamples cannot tell p-values of {threshold:g}")
    comparisons = tuple(
        Comparison(name, *paired_comparison(candidate, rival, level=threshold, resamples=number))
        for name, rival in rivals.items()
    )
    accepted = all(comparison.p <= threshold for comparison in comparisons)
    return Verdict(accepted, level, looks, tried, comparisons)


def _points(share: float) -> str:
    """Percentage points with their sign; what is not zero never reads as zero.

    >>> _points(0.008), _points(0.0), _points(-0.0004), _points(-0.125)
    ('+0.8', '0.0', '−0.04', '−12.5')
    """
    digits = 2 if 0.00005 <= abs(share) < 0.0005 else 1
    text = f"{100 * share:+.{digits}f}".replace("-", "−")
    return text if text.strip("+−0.") else "0.0"


def _percent(missed: float) -> str:
    """How sure an interval is that misses this often; never 100 %.

    >>> _percent(0.02), _percent(0.1 / 3), _percent(0.0002)
    ('98 %', '96.7 %', '99.98 %')
    """
    return f"{100 - float(f'{100 * missed:.2g}'):.10g} %"


def _p_value(p: float, threshold: float) -> str:
    """A p-value beside what it may be.

    >>> _p_value(0.0912, 0.01), _p_value(0.0001, 0.05 / 3)
    ('p = 0.091 > 0.01', 'p = 0.0001 ≤ 0.017')
    """
    sign = "≤" if p <= threshold else ">"
    # Two digits unless these would make them equal.
    digits = next(n for n in range(2, 18) if p == threshold or f"{p:.{n}g}" != f"{threshold:.{n}g}")
    return f"p = {p:.{digits}g} {sign} {threshold:.{digits}g}"
