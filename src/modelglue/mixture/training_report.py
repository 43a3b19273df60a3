"""Was a trained router worth it: losses before and after on samples that nothing was chosen by.

A document without a prompt is routed on itself, all of its tokens, in training and here: where a
router decides once a sample, the nats of such documents are those of a mixture that has seen the
whole document. They compare routers with one another; they are no perplexity, for which a text is
routed on what stands before it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelglue.evaluate.statistics import Interval

_RESAMPLES = 2000


@dataclass(frozen=True)
class BeforeAfter:
    """Mean losses on the report part, each with its 95 % interval.

    Args:
        unit: of the losses.
        samples: how many there are.
        before: of the mixture as it was.
        after: of the mixture as it is written.
        gain: before less after, paired.
    """

    unit: str
    samples: int
    before: Interval
    after: Interval
    gain: Interval

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def compare(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    counts: NDArray[np.float64] | None = None,
    *,
    unit: str,
    seed: int = 0,
) -> BeforeAfter:
    """Percentile bootstrap over samples (Efron, 1979).

    Args:
        before: [samples], the summed loss of each.
        after: the same.
        counts: [samples], over how many units each is summed; 1 by default. The mean is that over
            all units.
    """
    weights = np.ones(len(before)) if counts is None else counts
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(before), (_RESAMPLES, len(before)))
    whole = weights[drawn].sum(axis=1)

    def interval(sums: NDArray[np.float64]) -> Interval:
        mean = float(sums.sum() / weights.sum())
        low, high = np.quantile(sums[drawn].sum(axis=1) / whole, [0.025, 0.975])
        return Interval(mean, min(float(low), mean), max(float(high), mean))

    return BeforeAfter(
        unit, len(before), interval(before), interval(after), interval(before - after)
    )
