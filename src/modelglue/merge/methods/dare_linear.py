"""DARE, linear: drop entries of task vectors at random and rescale (Yu et al., 2311.03099)."""

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import task_vector_sum
from modelglue.merge.method import Law, merge_method
from modelglue.merge.parameters import (
    DENSITY,
    INT8_MASK,
    LAMBDA,
    SEED,
    WEIGHT,
    normalize,
    refuse_zero_sum,
    rescale,
)


@merge_method(
    parameters=(
        WEIGHT,
        DENSITY,
        LAMBDA,
        normalize(False),
        rescale(True, "divide what is kept by the density"),
        INT8_MASK,
        SEED,
    ),
    laws=set(Law) - {Law.IDEMPOTENT, Law.PERMUTATION_INVARIANT},
    base="required",
    check=refuse_zero_sum,
)
def dare_linear(
    chunk: Chunk,
    measured: None,
    /,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    lambda_: float,
    normalize: bool,
    rescale: bool,
    int8_mask: bool,
    seed: int,
) -> Array:
    """Drop entries of the task vectors at random, rescale, and add them to the base (2311.03099).

    Returns θ₀ + λ·Σwᵢ·(τᵢ ⊙ mᵢ)/pᵢ with τᵢ = θᵢ − θ₀, m ~ Bernoulli(p), p = `density`; without the
    division by p where `rescale: false`, and divided by Σwᵢ where `normalize: true`. What is drawn
    follows from (`seed`, tensor name, model, place) alone.

    Differs from mergekit: it draws from a global generator, and rescales by Σ|τ| / Σ|τ ⊙ m|, which
    is 1/p on average but with few entries depends on what was drawn. Weights that sum to 0 are
    refused under `normalize`; `weight` is 1 where nothing is said.
    """
    return task_vector_sum(
        chunk,
        weights=weight,
        scale=lambda_,
        random=density,
        rescale=[1 / d if d else 1.0 for d in density] if rescale else None,
        consensus=None,
        normalize=normalize,
    )
