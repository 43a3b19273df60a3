"""Task arithmetic: the base plus a weighted sum of task vectors (Ilharco et al., 2212.04089)."""

from dataclasses import replace

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import task_vector_sum
from modelglue.merge.method import Law, merge_method
from modelglue.merge.parameters import (
    DENSITY,
    INT8_MASK,
    LAMBDA,
    WEIGHT,
    normalize,
    refuse_zero_sum,
    rescale,
)


@merge_method(
    parameters=(
        WEIGHT,
        normalize(False),
        LAMBDA,
        replace(DENSITY, help="accepted, no effect: nothing is dropped"),
        rescale(False, "accepted, no effect: nothing is dropped"),
        INT8_MASK,
    ),
    laws=set(Law) - {Law.IDEMPOTENT},
    base="required",
    check=refuse_zero_sum,
)
def task_arithmetic(
    chunk: Chunk,
    measured: None,
    /,
    *,
    weight: tuple[float, ...],
    normalize: bool,
    lambda_: float,
    density: tuple[float, ...],
    rescale: bool,
    int8_mask: bool,
) -> Array:
    """Add the task vectors to the base: θ₀ + λ·Σwᵢτᵢ with τᵢ = θᵢ − θ₀ (arXiv 2212.04089).

    With `normalize` the sum is divided by Σwᵢ.

    Differs from mergekit: weights that sum to 0 are refused under `normalize`, where mergekit
    leaves the sum undivided; `weight` is 1 where nothing is said, where mergekit refuses.
    """
    return task_vector_sum(chunk, weights=weight, scale=lambda_, normalize=normalize)
