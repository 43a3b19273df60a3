"""DELLA: drop by rank of magnitude, elect signs, merge (Deep et al., 2406.11617)."""

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk
from modelglue.merge.method import Law, merge_method
from modelglue.merge.parameters import (
    DENSITY,
    EPSILON,
    INT8_MASK,
    LAMBDA,
    SEED,
    WEIGHT,
    all_of,
    normalize,
    refuse_wide_epsilon,
    refuse_zero_sum,
    rescale,
)
from modelglue.merge.sparsity import consensus_sum, drawn_by_rank


@merge_method(
    parameters=(
        WEIGHT,
        DENSITY,
        EPSILON,
        LAMBDA,
        normalize(True),
        rescale(True, "divide what is kept by its probability"),
        INT8_MASK,
        SEED,
    ),
    laws={
        Law.IDEMPOTENT,
        Law.HOMOGENEOUS,
        Law.TRANSLATION_EQUIVARIANT,
        Law.ANCHORED,
    },
    base="required",
    check=all_of(refuse_zero_sum, refuse_wide_epsilon),
    rows=lambda parameters: True,
)
def della(
    chunk: Chunk,
    measured: None,
    /,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    epsilon: tuple[float, ...],
    lambda_: float,
    normalize: bool,
    rescale: bool,
    int8_mask: bool,
    seed: int,
) -> Array:
    """Drop entries at random, small ones more often, and average what agrees (arXiv 2406.11617).

    In each row (last dimension) of τᵢ = θᵢ − θ₀ the probability p of being kept rises evenly with
    the rank of |τᵢ|, from `density` − `epsilon` to `density` + `epsilon`; at density 1 all stay.
    δᵢ = (τᵢ ⊙ mᵢ)/p, m ~ Bernoulli(p), undivided where `rescale: false`; γ = sign(Σwᵢδᵢ), plus
    where the sum is 0. Returns θ₀ + λ·Σ_A wᵢδᵢ / Σ_A wᵢ over the models A whose entry has the sign
    γ, without the last division where `normalize: false`. What is drawn follows from (`seed`,
    tensor name, model, place) alone; of equal magnitudes the first has the lower rank.

    Differs from mergekit: it rescales by Σ|τ| / Σ|τ ⊙ m| in place of the paper's 1/p, which on
    average makes large entries too large and small ones too small; it draws from a global
    generator; it ranks tensors of three and more dimensions along the second, and stops at a row of
    one entry, which here has p = `density`. A probability outside 0 … 1 is refused by both. Weights
    that sum to 0 are refused under `normalize`, and weights that agree but cancel (|Σ_A wᵢ| ≤
    1e-6·Σ|wᵢ|) divide by 1, where mergekit takes 1e-8 for weights of any size; `weight` is 1 where
    nothing is said.
    """
    deltas = drawn_by_rank(chunk, density, epsilon, rescale=rescale)
    terms = [w * delta for w, delta in zip(weight, deltas, strict=True)]
    merged = consensus_sum(terms, weight if normalize else None)
    return chunk.fp32_base + lambda_ * merged
