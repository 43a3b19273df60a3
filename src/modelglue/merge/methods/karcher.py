"""Karcher mean: the point on the sphere that is nearest to all models (2603.04972)."""

import numpy as np

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.geometry import OPPOSITE, norms
from modelglue.merge.kernels import gram, weighted_sum
from modelglue.merge.method import Law, Parameter, merge_method


def _coefficients(whole: Whole, /, *, max_iter: int, tol: float) -> np.ndarray:
    products = gram(whole, of="models")
    length = norms(products)
    if not np.isfinite(products).all():
        return np.full(whole.n, np.nan)
    usable = length > tol
    if whole.n == 1 or not usable.any():
        return np.full(whole.n, 1 / whole.n)
    units = np.where(usable, 1 / np.where(usable, length, 1), 0)
    cosines = products * units[:, None] * units
    share = usable / usable.sum()
    mean = _karcher_mean(cosines, share, np.flatnonzero(usable)[0], max_iter=max_iter, tol=tol)
    scaled: np.ndarray = mean * units * length.mean()
    return scaled


def _karcher_mean(
    cosines: np.ndarray, share: np.ndarray, first: int, *, max_iter: int, tol: float
) -> np.ndarray:
    """The mean of n points on the unit sphere, as coefficients of them."""

    def norm(coefficients: np.ndarray) -> float:
        return float(np.sqrt(max(coefficients @ cosines @ coefficients, 0.0)))

    points = np.eye(len(share))
    # What cancels, and an antipode, are known within the rounding of the models: see `OPPOSITE`.
    least = max(tol, np.sqrt(OPPOSITE))
    mean = share / norm(share) if norm(share) >= least else points[first]
    for _ in range(int(max_iter)):
        dots = np.clip(cosines @ mean, -1, 1)
        angles = np.arccos(dots)
        # No tangent leads to a point's own place, and none of all leads to its antipode.
        away = (angles >= tol) & (angles <= np.pi - least)
        factors = np.where(away, share * angles / np.where(away, np.sin(angles), 1), 0)
        tangent = factors - (factors @ dots) * mean
        step = norm(tangent)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) / step * tangent
        mean = mean / norm(mean)
    return mean


@merge_method(
    parameters=(
        Parameter("max_iter", "merge", "most iterations", 10, low=0, kind="integer"),
        Parameter("tol", "merge", "a shorter step ends the search", 1e-5, low=0, above=True),
    ),
    laws={Law.IDEMPOTENT, Law.PERMUTATION_INVARIANT, Law.HOMOGENEOUS, Law.ANCHORED},
    measure=_coefficients,
)
def karcher(chunk: Chunk, measured: np.ndarray, /, *, max_iter: int, tol: float) -> Array:
    """Take the Karcher mean of the directions at the mean length (arXiv 2603.04972).

    The mean μ of the unit tensors minimises Σ arccos²⟨μ, uᵢ⟩: from the normalised mean on, μ moves
    along the mean of the tangents (Ωᵢ/sin Ωᵢ)·(uᵢ − cos Ωᵢ·μ) until a step is shorter than `tol`.
    Returns mean(‖θᵢ‖)·μ. Tensors whose norm is at most `tol` have no direction; if none has one,
    the plain mean is returned.

    All iterations run on the coefficients of the models, from one matrix of dot products.

    Differs from mergekit: float64 throughout; a model at the antipode of the mean (within 0.003)
    gives no step (mergekit divides by sin π); tensors that are all shorter than `tol` give their
    mean, not 0.
    """
    return weighted_sum(chunk, measured.tolist())
