"""Linear: the weighted mean of the models, also called a soup (Wortsman et al., 2203.05482)."""

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import weighted_sum
from modelglue.merge.method import Law, merge_method
from modelglue.merge.parameters import WEIGHT, normalize, refuse_zero_sum


@merge_method(
    parameters=(WEIGHT, normalize(True)),
    laws=set(Law),
    check=refuse_zero_sum,
)
def linear(chunk: Chunk, measured: None, /, *, weight: tuple[float, ...], normalize: bool) -> Array:
    """Take the weighted mean of the models: Σwᵢθᵢ / Σwᵢ (arXiv 2203.05482).

    With `normalize: false` the sum stays as it is.

    Differs from mergekit: weights that sum to 0 are refused under `normalize`, where mergekit
    writes a model of NaN; `weight` is 1 where nothing is said, where mergekit refuses.
    """
    total = sum(weight) if normalize else 1.0
    return weighted_sum(chunk, [w / total for w in weight])
