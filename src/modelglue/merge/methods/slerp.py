"""SLERP: between two models along the great circle (Shoemake, 1985)."""

import numpy as np

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.geometry import cosines, great_circle
from modelglue.merge.kernels import gram, weighted_sum
from modelglue.merge.method import Law, Parameter, merge_method

NEARLY_PARALLEL = 0.9995


def _coefficients(whole: Whole, /, *, t: float) -> np.ndarray:
    products = gram(whole, of="models")
    return great_circle(products, t, linear_if=abs(cosines(products)[0, 1]) > NEARLY_PARALLEL)


@merge_method(
    parameters=(Parameter("t", "merge", "0 gives the first model (the base), 1 the other", 0.5),),
    laws={Law.IDEMPOTENT, Law.HOMOGENEOUS, Law.ANCHORED},
    base="first",
    models=(2, 2),
    measure=_coefficients,
)
def slerp(chunk: Chunk, measured: np.ndarray, /, *, t: float) -> Array:
    """Interpolate two tensors along the great circle between them (Shoemake, 1985).

    With Ω the angle between a (of the base) and b, returns [sin((1−t)Ω)·a + sin(tΩ)·b] / sin Ω, Ω
    taken once for the tensor, in float64. Where |cos Ω| > 0.9995 the way is straight,
    (1−t)·a + t·b: sin Ω → 0.

    Differs from mergekit: a tensor of zeros has no direction, so the way from or to it is straight
    too (mergekit takes a right angle); `t` is 0.5 where nothing is said (mergekit refuses).
    """
    return weighted_sum(chunk, measured.tolist())
