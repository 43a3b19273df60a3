"""NuSLERP: spherical interpolation of two models or task vectors, by tensor, row or column."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from modelglue.merge.arrays import Array, namespace
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.geometry import (
    combine_rows,
    great_circle,
    parallel,
    spread_sum,
)
from modelglue.merge.kernels import gram, weighted_sum
from modelglue.merge.kernels.dispatch import backend
from modelglue.merge.kernels.sums import cancel
from modelglue.merge.method import Law, Parameter, merge_method
from modelglue.merge.parameters import WEIGHT


def _by_row(parameters: Mapping[str, Any], /) -> bool:
    return not parameters["nuslerp_flatten"] and not parameters["nuslerp_row_wise"]


def _measure(
    whole: Whole, /, *, weight: tuple[float, ...], nuslerp_flatten: bool, nuslerp_row_wise: bool
) -> np.ndarray:
    """Coefficients [1, 2] of the tensor, or [columns, 2]; with a base [.., 3]."""
    if nuslerp_flatten:
        products = gram(whole, of="deltas" if whole.has_base else "models")[None]
    else:
        products = _column_grams(whole)
    return _coefficients(products, weight, base=whole.has_base)


def _coefficients(products: np.ndarray, weight: tuple[float, ...], *, base: bool) -> np.ndarray:
    """[m, 2] of dot products [m, 2, 2]; with a base [m, 3]."""
    t = 0.5 if cancel(weight) else weight[1] / sum(weight)
    found = great_circle(products, t, linear_if=parallel(products))
    return (
        np.concatenate([found, 1 - found.sum(axis=-1, keepdims=True)], axis=-1) if base else found
    )


def _column_grams(whole: Whole) -> np.ndarray:
    """Dot products along the tensor's first dimension: [columns, 2, 2]."""
    columns = whole.numel // whole.shape[0] if whole.shape else 1
    total = np.zeros((3, columns))
    for chunk in whole.walk():
        models = chunk.deltas if whole.has_base else chunk.fp32
        xp = namespace(models)
        a, b = xp.asarray(models, dtype=xp.float64)
        lead = chunk.start % columns
        size = -(-(lead + len(a)) // columns) * columns
        table = xp.zeros((3, size), dtype=xp.float64, device=a.device)
        for line, product in zip(table, (a * a, a * b, b * b), strict=True):
            line[lead : lead + len(a)] = product
        total += backend(chunk).to_numpy(table.reshape(3, -1, columns).sum(1))
    aa, ab, bb = total
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
    measure=_measure,
    scope=lambda parameters: "chunk" if _by_row(parameters) else "tensor",
    rows=_by_row,
)
def nuslerp(
    chunk: Chunk,
    measured: np.ndarray | None,
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
    besides each column: what mergekit's code does under that name. Parallel vectors (Ω = 0) and
    opposite ones (1 + cos Ω ≤ 1e-5) are taken as (1−t)·a + t·b.

    Source: mergekit's documentation (C. O. Goddard).

    Differs from mergekit: it goes straight only where 1 − cos² Ω ≤ 1e-16, so that opposite vectors,
    single numbers among them, are divided by what rounding left of sin Ω; where a vector is 0 the
    way is straight (mergekit takes a right angle); angles are taken in float64; `weight` is 1 where
    nothing is said (mergekit refuses).
    """
    base = chunk.base is not None
    if measured is None:
        of: Literal["models", "deltas"] = "deltas" if base else "models"
        return combine_rows(chunk, of, lambda rows: _coefficients(rows, weight, base=base))
    if len(measured) == 1:
        *shares, rest = measured[0].tolist() if base else (*measured[0].tolist(), 0.0)
        return weighted_sum(chunk, shares, rest)
    return spread_sum(chunk, measured, chunk.places % len(measured))
