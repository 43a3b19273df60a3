"""Multi-SLERP: the mean direction of several models at their mean length."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.geometry import OPPOSITE, norms
from modelglue.merge.kernels import gram, weighted_sum
from modelglue.merge.kernels.sums import cancel
from modelglue.merge.method import Law, Parameter, merge_method
from modelglue.merge.parameters import WEIGHT


def _refuse_zero_sum(parameters: Mapping[str, Any], /) -> str | None:
    if parameters["normalize_weights"] and cancel(parameters["weight"]):
        return "the weights sum to 0, and normalize_weights: true divides by their sum"
    return None


def _coefficients(
    whole: Whole, /, *, weight: tuple[float, ...], normalize_weights: bool, eps: float
) -> np.ndarray:
    if whole.n == 1:
        return np.ones(1)
    products = gram(whole, of="deltas" if whole.has_base else "models")
    weights = np.asarray(weight) / (sum(weight) if normalize_weights else 1.0)
    lengths = norms(products)
    mean = np.where(lengths == 0, 0, weights / np.where(lengths == 0, 1, lengths))
    length = np.sqrt(max(mean @ products @ mean, 0.0))
    # What cancels leaves the rounding of the models: see `OPPOSITE`.
    if length <= max(eps, abs(weights).sum() * np.sqrt(OPPOSITE)):
        return weights
    scaled: np.ndarray = mean / length * (weights @ lengths)
    return scaled


@merge_method(
    parameters=(
        WEIGHT,
        Parameter(
            "normalize_weights", "merge", "divide the weights by their sum", True, kind="boolean"
        ),
        Parameter("eps", "merge", "a mean direction shorter than this is none", 1e-8, low=0),
    ),
    laws={Law.IDEMPOTENT, Law.PERMUTATION_INVARIANT, Law.HOMOGENEOUS, Law.ANCHORED},
    base="optional",
    measure=_coefficients,
    check=_refuse_zero_sum,
)
def multislerp(
    chunk: Chunk,
    measured: np.ndarray,
    /,
    *,
    weight: tuple[float, ...],
    normalize_weights: bool,
    eps: float,
) -> Array:
    """Take the weighted mean direction at the weighted mean length: (Σwᵢ‖xᵢ‖) · m/‖m‖.

    m = Σwᵢ xᵢ/‖xᵢ‖, with xᵢ the tensors, or the task vectors if a base is named (then θ₀ is added).
    One model is returned as it is.

    Source: https://goddard.blog/posts/multislerp-wow-what-a-cool-idea. There the unit vectors are
    projected onto the tangent space at m/‖m‖, averaged and projected back; but the projections
    average to 0 at just that point, so that what remains is the formula above.

    Differs from mergekit: directions that cancel (‖m‖ ≤ eps or ≤ 0.003·Σ|wᵢ|, which is what
    bfloat16's rounding leaves) give the weighted sum for any number of models; mergekit does so for
    two below eps and stops for more, even where all task vectors are 0.
    """
    return weighted_sum(chunk, measured.tolist(), 0.0 if chunk.base is None else 1 - measured.sum())
