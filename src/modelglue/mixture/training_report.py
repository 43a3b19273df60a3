"""Was a trained router worth it: losses before and after on samples that nothing was chosen by.

A document without a prompt is routed on itself, all of its tokens, in training and here: where a
router decides once a sample, the nats of such documents are those of a mixture that has seen the
whole document. They compare routers with one another; they are no perplexity, for which a text is
routed on what stands before it.
"""

from collections.abc import Hashable, Sequence
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
    documents: Sequence[Hashable] | None = None,
    unit: str,
    seed: int = 0,
) -> BeforeAfter:
    """Percentile bootstrap over documents (Efron, 1979).

    What is of one document is alike, and is drawn together: pieces drawn one by one would make the
    intervals too narrow.

    Args:
        before: [samples], the summed loss of each.
        after: the same.
        counts: [samples], over how many units each is summed; 1 by default. The mean is that over
            all units.
        documents: [samples], equal for those of one document; by default each is its own.
    """
    weights = np.ones(len(before)) if counts is None else counts
    places = _numbered(range(len(before)) if documents is None else documents)
    generator = np.random.default_rng(seed)
    many = int(places.max()) + 1
    drawn = generator.integers(0, many, (_RESAMPLES, many))
    whole = np.bincount(places, weights)[drawn].sum(axis=1)

    def interval(sums: NDArray[np.float64]) -> Interval:
        mean = float(sums.sum() / weights.sum())
        means = np.bincount(places, sums)[drawn].sum(axis=1) / whole
        low, high = np.quantile(means, [0.025, 0.975])
        return Interval(mean, min(float(low), mean), max(float(high), mean))

    return BeforeAfter(
        unit, len(before), interval(before), interval(after), interval(before - after)
    )


def _numbered(documents: Sequence[Hashable]) -> NDArray[np.intp]:
    """Documents as numbers from 0, in the order in which they come first."""
    known = {document: number for number, document in enumerate(dict.fromkeys(documents))}
    return np.array([known[document] for document in documents], dtype=np.intp)
