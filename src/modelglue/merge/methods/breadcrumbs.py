"""Model Breadcrumbs: drop the smallest and the largest (Davari and Belilovsky, 2312.06795)."""

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.kernels import task_vector_sum
from modelglue.merge.method import Law, merge_method
from modelglue.merge.parameters import (
    DENSITY,
    GAMMA,
    INT8_MASK,
    L1_RESCALE,
    LAMBDA,
    WEIGHT,
    normalize,
    refuse_zero_sum,
    rescale,
)
from modelglue.merge.sparsity import Trim, without_outliers


def _trim(
    whole: Whole, /, *, density: tuple[float, ...], gamma: tuple[float, ...], rescale: bool
) -> Trim:
    return without_outliers(whole, density, gamma, rescale=rescale)


@merge_method(
    parameters=(
        WEIGHT,
        DENSITY,
        GAMMA,
        LAMBDA,
        normalize(False),
        rescale(False, L1_RESCALE),
        INT8_MASK,
    ),
    laws=set(Law) - {Law.IDEMPOTENT, Law.ELEMENTWISE},
    base="required",
    check=refuse_zero_sum,
    measure=_trim,
)
def breadcrumbs(
    chunk: Chunk,
    measured: Trim,
    /,
    *,
    weight: tuple[float, ...],
    density: tuple[float, ...],
    gamma: tuple[float, ...],
    lambda_: float,
    normalize: bool,
    rescale: bool,
    int8_mask: bool,
) -> Array:
    """Drop the largest and the smallest entries of task vectors, and add the rest (2312.06795).

    Of each τᵢ = θᵢ − θ₀, tensor by tensor, the `gamma` largest magnitudes go, and of the smallest
    as many that `density` remain (fewer large ones go where gamma + density > 1; none at
    density 1). Returns θ₀ + λ·Σwᵢ(τᵢ ⊙ mᵢ), divided by Σwᵢ where `normalize: true`. Of equal
    magnitudes the first in the tensor are the larger.

    Differs from mergekit: its unstable sort decides between equal magnitudes; weights that sum to 0
    are refused under `normalize`; `weight` is 1 where nothing is said.
    """
    return task_vector_sum(
        chunk,
        weights=weight,
        scale=lambda_,
        keep=measured.keep,
        drop=measured.drop,
        rescale=measured.rescale,
        consensus=None,
        normalize=normalize,
    )
