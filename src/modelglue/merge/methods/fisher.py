"""Fisher merging: average by how much each model's loss depends on an entry (2111.09832)."""

from dataclasses import replace

from modelglue.merge.arrays import Array, namespace
from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import weighted_sum
from modelglue.merge.method import Law, Parameter, merge_method
from modelglue.merge.parameters import STATISTICS, WEIGHT, refuse_no_weight


@merge_method(
    parameters=(
        replace(WEIGHT, low=0),
        STATISTICS,
        Parameter("floor", "merge", "the least Fisher information", 1e-20, low=0, above=True),
    ),
    laws=set(Law),
    statistics="same",
    check=refuse_no_weight,
)
def fisher(chunk: Chunk, measured: None, /, *, weight: tuple[float, ...], floor: float) -> Array:
    """Weigh every entry by its Fisher information: Σλᵢ Fᵢ⊙θᵢ / Σλᵢ Fᵢ (arXiv 2111.09832).

    Fᵢ, the diagonal of model i's Fisher information, is the mean square of the gradient of its
    log-likelihood on calibration text; λᵢ is its `weight`. Entries of F below `floor` count as
    `floor`: where no model has any, the result is the weighted mean, as it is for a constant F and
    for tensors without statistics.
    """
    if chunk.statistics is None:
        return weighted_sum(chunk, [w / sum(weight) for w in weight])
    xp = namespace(chunk.models)
    # Squares of gradients are small numbers: in float64 neither they nor the floor vanish.
    shares = xp.asarray(chunk.statistics, dtype=xp.float64).clip(floor, None)
    merged, total = shares[0] * 0, shares[0] * 0
    for share, factor, theta in zip(shares, weight, chunk.fp32, strict=True):
        merged = merged + share * factor * theta
        total = total + share * factor
    return xp.asarray(merged / total, dtype=xp.float32)
