"""Passthrough: one model's tensors as they are, for stacking layers."""

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import weighted_sum
from modelglue.merge.method import Law, Parameter, merge_method


@merge_method(
    parameters=(Parameter("scale", "model", "multiplies the tensor", optional=True),),
    laws=set(Law),
    models=(1, 1),
    keeps=lambda parameters: parameters["scale"][0] in (None, 1),
)
def passthrough(chunk: Chunk, measured: None, /, *, scale: tuple[float | None, ...]) -> Array:
    """Take the only model's tensor, times `scale` if one is given.

    With slices from several models it stacks their layers; a `scale` of 0 on the projections that
    write into the residual stream (`o_proj`, `down_proj`) makes an added layer begin as identity.
    Without a `scale` float64 stays exact too; all else is computed in float32.
    """
    return weighted_sum(chunk, [1.0 if scale[0] is None else scale[0]])
