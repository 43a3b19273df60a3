"""DARE with TIES: drop at random, then elect signs (2311.03099, 2306.01708)."""

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
    laws={Law.HOMOGENEOUS, Law.TRANSLATION_EQUIVARIANT, Law.ELEMENTWISE, Law.ANCHORED},
    base="required",
    check=refuse_zero_sum,
)
def dare_ties(
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
    """Drop entries of the task vectors at random, rescale, and add up what agrees (2311.03099).

    With δᵢ = (τᵢ ⊙ mᵢ)/pᵢ, m ~ Bernoulli(p), p = `density`, and γ = sign(Σwᵢδᵢ), plus where the
    sum is 0, returns θ₀ + λ·Σ_A wᵢδᵢ over the models A whose entry has the sign γ; divided by
    Σ_A wᵢ where `normalize: true`, without the division by p where `rescale: false`. What is drawn
    follows from (`seed`, tensor name, model, place) alone.

    Differs from mergekit: it draws from a global generator, and rescales by Σ|τ| / Σ|τ ⊙ m|, which
    is 1/p on average but with few entries depends on what was drawn. Weights that sum to 0 are
    refused under `normalize`, and weights that agree but cancel (|Σ_A wᵢ| ≤ 1e-6·Σ|wᵢ|) divide by
    1, where mergekit takes 1e-8 for weights of any size; `weight` is 1 where nothing is said.
    """
    return task_vector_sum(
        chunk,
        weights=weight,
        scale=lambda_,
        random=density,
        rescale=[1 / d if d else 1.0 for d in density] if rescale else None,
        consensus="sum",
        normalize=normalize,
    )
