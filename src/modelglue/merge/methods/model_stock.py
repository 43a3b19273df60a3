"""Model Stock: between the base and the models' mean, by how far they agree (2403.19522)."""

import numpy as np

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.geometry import OPPOSITE, combine_rows, mean_cosines
from modelglue.merge.kernels import gram, weighted_sum
from modelglue.merge.method import Law, Parameter, merge_method


def _shares(products: np.ndarray) -> np.ndarray:
    """What each of n models and the base counts: [m, n + 1], of dot products [m, n, n]."""
    n = products.shape[-1]
    cosine = mean_cosines(products)
    total = 1 + (n - 1) * cosine
    regular = ~(abs(total) <= n * OPPOSITE)
    t = np.divide(n * cosine, total, where=regular, out=np.zeros_like(total))
    shares = np.empty((len(t), n + 1))
    shares[:, :n] = (t / n)[:, None]
    shares[:, n] = 1 - t
    return shares


def _measure(whole: Whole, /) -> np.ndarray:
    found: np.ndarray = _shares(gram(whole, of="deltas")[None])[0]
    return found


@merge_method(
    parameters=(Parameter("filter_wise", "merge", "an angle for each row", False, kind="boolean"),),
    laws=set(Law) - {Law.ELEMENTWISE},
    base="required",
    models=(2, None),
    measure=_measure,
    scope=lambda parameters: "chunk" if parameters["filter_wise"] else "tensor",
    rows=lambda parameters: bool(parameters["filter_wise"]),
)
def model_stock(chunk: Chunk, measured: np.ndarray | None, /, *, filter_wise: bool) -> Array:
    """Go from the base towards the models' mean, by the angle between task vectors (2403.19522).

    With cos θ the mean cosine over all pairs of τᵢ = θᵢ − θ₀ and t = N·cos θ / (1 + (N−1)·cos θ),
    returns t·mean(θᵢ) + (1−t)·θ₀: task vectors at right angles give the base, parallel ones the
    mean. One angle a tensor, with `filter_wise` one a row (last dimension).

    Where 1 + (N−1)·cos θ is 0 (at most 1e-5·N) the result is the base. Cosines below 0 make t
    negative, as the formula has it.

    Differs from mergekit: it divides by at least 1e-6 in place of a product of norms, so that
    cosines of short task vectors (norms of a layer barely trained) come out too small; here every
    cosine is exact, and 0 only with a task vector of 0.
    """
    if measured is None:
        return combine_rows(chunk, "deltas", _shares)
    *shares, rest = measured.tolist()
    return weighted_sum(chunk, shares, rest)
