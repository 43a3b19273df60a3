"""Angles between tensors, from dot products alone.

What slerp, Karcher means or Model Stock return is a linear combination of their inputs, and its
coefficients follow from the inputs' Gram matrix. So one pass takes dot products, all geometry is
float64 on a few numbers, and a second pass adds up: no tensor is ever held.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from modelglue.merge.arrays import Array, floats, like, namespace
from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import row_grams

OPPOSITE = 1e-5
"""Two directions are opposite if 1 + cos Ω is no larger than this.

Rounding to bfloat16 turns a direction by about 1e-3, so of two that are opposite 1 + cos Ω ≈ 1e-6
is left, in float32 1e-15; and there sin Ω, or the length of a mean, is nothing but that rounding.
Near 0° nothing is divided by the angle alone, and no such bound is needed.
"""


def norms(gram: np.ndarray) -> np.ndarray:
    """Euclidean norms: [..., n] of [..., n, n]."""
    lengths: np.ndarray = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0))
    return lengths


def cosines(gram: np.ndarray) -> np.ndarray:
    """Cosines: [..., n, n]; 0 with a vector of length 0, which has no direction."""
    length = norms(gram)
    product = length[..., :, None] * length[..., None, :]
    cosine = gram / np.where(product == 0, np.inf, product)
    within: np.ndarray = np.minimum(np.maximum(cosine, -1), 1)
    return within


def mean_cosines(gram: np.ndarray) -> np.ndarray:
    """The mean cosine over all pairs: [m] of [m, n, n]."""
    from modelglue.merge.kernels import angles

    found = np.empty(len(gram))
    angles.mean_cosines(np.ascontiguousarray(gram), found)
    return found


def parallel(gram: np.ndarray) -> np.ndarray:
    """Whether two vectors lie on one line, in one direction or in opposite ones: [...]."""
    cosine = cosines(gram)[..., 0, 1]
    found: np.ndarray = (1 - cosine <= 1e-12) | (1 + cosine <= OPPOSITE)
    return found


def great_circle(gram: np.ndarray, t: float, *, linear_if: np.ndarray) -> np.ndarray:
    """Coefficients of two vectors on the way along their great circle (Shoemake, 1985).

    Args:
        gram: [..., 2, 2].
        t: 0 gives the first, 1 the second.
        linear_if: [...] where to go straight instead.

    Returns:
        [..., 2]: sin((1−t)Ω)/sin Ω and sin(tΩ)/sin Ω, or 1−t and t.
    """
    # A vector of length 0 spans no great circle.
    straight = linear_if | (norms(gram) == 0).any(axis=-1)
    angle = np.where(straight, np.pi / 2, np.arccos(cosines(gram)[..., 0, 1]))[..., None]
    share = np.array([1 - t, t])
    arc = np.sin(share * angle) / np.sin(angle)
    coefficients: np.ndarray = np.where(straight[..., None], share, arc)
    # NaN compares as unequal to everything: what is not finite must not turn into a straight line.
    return np.where(np.isfinite(gram).all(axis=(-2, -1))[..., None], coefficients, np.nan)


ROWS = 1 << 12
"""Rows whose dot products are in memory at a time."""


def combine_rows(
    chunk: Chunk, of: Literal["models", "deltas"], coefficients: Callable[[np.ndarray], np.ndarray]
) -> Array:
    """Combine each row (along the last dimension) by its own dot products.

    Args:
        chunk: of n models, in whole rows.
        of: what to take dot products of.
        coefficients: of dot products [rows, n, n]: [rows, n], or [rows, n + 1]: the base last.

    Returns:
        [k] float32.
    """
    merged = []
    for part in chunk.parts(ROWS * chunk.width):
        at = np.arange(part.models.shape[1]) // chunk.width
        merged.append(spread_sum(part, coefficients(row_grams(part, of=of)), at))
    joined: Array = namespace(chunk.models).concatenate(merged)
    return joined


def spread_sum(chunk: Chunk, coefficients: np.ndarray, at: np.ndarray) -> Array:
    """Combine with coefficients that differ between the entries.

    Args:
        chunk: of n models.
        coefficients: [m, n], or [m, n + 1]: the base last.
        at: [k], for each entry which of the m coefficients is its own.

    Returns:
        [k] float32.
    """
    rows = [*chunk.models] if chunk.base is None else [*chunk.models, chunk.base]
    merged = like(coefficients[at, 0], chunk.models) * floats(rows[0])
    for model in range(1, len(rows)):
        merged = merged + like(coefficients[at, model], chunk.models) * floats(rows[model])
    return merged
