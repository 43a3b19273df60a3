"""NuSLERP: spherical interpolation of two models or task vectors, by tensor, row or column."""

import numpy as np

from modelglue.merge.arrays import Array, namespace
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.geometry import great_circle, has_base, parallel, places, rows_sum
from modelglue.merge.kernels import gram, row_grams, weighted_sum
from modelglue.merge.kernels.dispatch import backend
from modelglue.merge.kernels.sums import cancel
from modelglue.merge.method import Law, Parameter, merge_method
from modelglue.merge.parameters import WEIGHT

Measured = tuple[np.ndarray, int]


def _coefficients(
    whole: Whole, /, *, weight: tuple[float, ...], nuslerp_flatten: bool, nuslerp_row_wise: bool
) -> Measured:
    """Coefficients [m, 2] (with a base [m, 3]), and how many entries in turn share a set."""
    base = has_base(whole)
    stride = 1
    if nuslerp_flatten:
        products = gram(whole, of="deltas" if base else "models")[None]
    elif nuslerp_row_wise:
        products = _column_grams(whole, base=base)
    else:
        products = row_grams(whole, of="deltas" if base else "models")
        stride = whole.shape[-1] if whole.shape else 1
    t = 0.5 if cancel(weight) else weight[1] / sum(weight)
    found = great_circle(products, t, linear_if=parallel(products))
    if base:
        found = np.concatenate([found, 1 - found.sum(axis=-1, keepdims=True)], axis=-1)
    return found, stride


def _column_grams(whole: Whole, *, base: bool) -> np.ndarray:
    """Dot products along the tensor's first dimension: [columns, 2, 2]."""
    columns = whole.numel // whole.shape[0] if whole.shape else 1

    def part(chunk: Chunk) -> np.ndarray:
        models = chunk.deltas if base else chunk.fp32
        xp = namespace(models)
        a, b = xp.asarray(models, dtype=xp.float64)
        lead = chunk.start % columns
        size = -(-(lead + len(a)) // columns) * columns
        table = xp.zeros((3, size), dtype=xp.float64, device=a.device)
        for line, product in zip(table, (a * a, a * b, b * b), strict=True):
            line[lead : lead + len(a)] = product
        sums: np.ndarray = backend(chunk).to_numpy(table.reshape(3, -1, columns).sum(1))
        return sums

    aa, ab, bb = np.sum(whole.map(part), axis=0)
    return np.stack([aa, ab, ab, bb], axis=-1).reshape(columns, 2, 2)


@merge_method(
    parameters=(
        WEIGHT,
        Parameter(
            "nuslerp_flatten", "merge", "one angle a tensor; false: many", True, kind="boolean"
        ),
        Parameter(
            "nuslerp_row_wise",
            "merge",
            "with nuslerp_flatten: false, one angle a column in place of one a row",
            False,
            kind="boolean",
        ),
    ),
    laws={Law.IDEMPOTENT, Law.PERMUTATION_INVARIANT, Law.HOMOGENEOUS, Law.ANCHORED},
    base="optional",
    models=(2, 2),
    measure=_coefficients,
)
def nuslerp(
    chunk: Chunk,
    measured: Measured,
    /,
    *,
    weight: tuple[float, ...],
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
) -> Array:
    """Interpolate two models, or their task vectors if a base is named, along a great circle.

    With a, b the tensors (or τ₁, τ₂) and t = w₂ / (w₁ + w₂), ½ if the weights sum to 0, returns
    [sin((1−t)Ω)·a + sin(tΩ)·b] / sin Ω (plus θ₀). The angle Ω is that of the whole tensors; with
    `nuslerp_flatten: false` each row (last dimension) has its own, with `nuslerp_row_wise: true`
    besides each column: what mergekit's code does under that name. Where
    1 − |cos Ω| ≤ 1e-6 the way is straight, (1−t)·a + t·b.

    Source: mergekit's documentation (C. O. Goddard).

    Differs from mergekit: it goes straight only where 1 − cos² Ω ≤ 1e-16, so that opposite vectors
    and numbers are divided by what rounding left of sin Ω; where a vector is 0 the way is straight
    (mergekit takes a right angle); angles are taken in float64; `weight` is 1 where nothing is said
    (mergekit refuses).
    """
    coefficients, stride = measured
    if len(coefficients) == 1:
        found = coefficients[0]
        return weighted_sum(chunk, found[:2], found[2] if len(found) > 2 else 0.0)
    return rows_sum(chunk, coefficients, places(chunk) // stride % len(coefficients))
