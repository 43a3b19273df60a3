"""TIES: trim, elect signs, merge what agrees (Yadav et al., 2306.01708)."""

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.kernels import task_vector_sum
from modelglue.merge.method import Law, Parameter, merge_method
from modelglue.merge.parameters import (
    DENSITY,
    INT8_MASK,
    L1_RESCALE,
    LAMBDA,
    WEIGHT,
    normalize,
    refuse_zero_sum,
    rescale,
)
from modelglue.merge.sparsity import Trim, trim_to


def _trim(whole: Whole, /, *, density: tuple[float, ...], rescale: bool) -> Trim:
    counts = [max(1, int(d * whole.numel)) if d else 0 for d in density]
    return trim_to(whole, counts, rescale=rescale)


@merge_method(
    parameters=(
        WEIGHT,
        DENSITY,
        LAMBDA,
        normalize(True),
        rescale(False, L1_RESCALE),
        INT8_MASK,
        Parameter(
            "trim",
            "merge",
            "where the largest are sought: in each tensor, or in the whole model",
            "tensor",
            kind="choice",
            choices=("tensor", "global"),
        ),
    ),
    laws=set(Law) - {Law.ELEMENTWISE},
    base="required",
    check=refuse_zero_sum,
    measure=_trim,
    scope=lambda parameters: "model" if parameters["trim"] == "global" else "tensor",
)
def ties(
    chunk: Chunk,
    measured: Trim,
    /,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    lambda_: float,
    normalize: bool,
    rescale: bool,
    int8_mask: bool,
    trim: str,
) -> Array:
    """Trim task vectors, elect a sign for each entry, and average what agrees (arXiv 2306.01708).

    Of each τᵢ = θᵢ − θ₀ the `density` largest magnitudes stay, rounded down to whole entries but at
    least one; γ = sign(Σwᵢτᵢ), plus where the sum is 0. With A the models whose entry has the sign
    γ, returns θ₀ + λ·Σ_A wᵢτᵢ / Σ_A wᵢ, without the division where `normalize: false`.

    `trim: global` takes the largest of the whole model, as the paper does; the default takes them
    tensor by tensor, as mergekit does. Of equal magnitudes the first in the tensor stay.

    Differs from mergekit: its unstable sort decides between equal magnitudes; weights that sum to 0
    are refused under `normalize`, and weights that agree but cancel (|Σ_A wᵢ| ≤ 1e-6·Σ|wᵢ|) divide
    by 1, where mergekit takes 1e-8 for weights of any size; `weight` is 1 where nothing is said.
    """
    return task_vector_sum(
        chunk,
        weights=weight,
        scale=lambda_,
        keep=measured.keep,
        rescale=measured.rescale,
        consensus="sum",
        normalize=normalize,
    )
