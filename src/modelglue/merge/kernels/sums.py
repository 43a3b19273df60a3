"""Sums of weights that are divided by, and when they are 0."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

CANCELLED = 1e-6
"""Weights add up to 0 if their sum is no larger than this share of their magnitudes' sum."""


def cancel(weights: Sequence[float]) -> bool:
    """Whether weights add up to 0, or to what rounding leaves of it."""
    return abs(math.fsum(weights)) <= CANCELLED * math.fsum(map(abs, weights))


def divisor(weights: np.ndarray, normalize: bool) -> np.float32:
    """What a sum of all is divided by; 0 where nothing is to be divided."""
    return np.float32(weights.sum(dtype=np.float64) if normalize else 0)


def least(weights: Iterable[float]) -> np.float32:
    """What a sum of some of the weights must exceed, counted in float32, not to be 0.

    It is 0 itself where all weights have one sign, as nothing cancels then.
    """
    exact = [float(weight) for weight in weights]
    total = math.fsum(map(abs, exact))
    return np.float32(0 if abs(math.fsum(exact)) == total else CANCELLED * total)
