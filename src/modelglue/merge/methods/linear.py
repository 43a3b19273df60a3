"""Linear: the weighted mean of the models, also called a soup (Wortsman et al., 2203.05482)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelglue.merge.method import Law, Parameter, merge_method


def refuse_zero_sum(parameters: Mapping[str, Any], /) -> str | None:
    """Refuse weights that normalising would divide by 0."""
    if parameters["normalize"] and abs(sum(map(float, parameters["weight"]))) < 1e-9:
        return "the weights sum to 0, and normalize: true divides by their sum"
    return None


@merge_method(
    parameters=(
        Parameter("weight", "model", "the share of each model", default=1.0),
        Parameter("normalize", "merge", "divide by the sum of the weights", default=True),
    ),
    laws={
        Law.IDEMPOTENT,
        Law.PERMUTATION_INVARIANT,
        Law.HOMOGENEOUS,
        Law.TRANSLATION_EQUIVARIANT,
        Law.ELEMENTWISE,
    },
    check=refuse_zero_sum,
)
def linear(chunk: Tensor, base: Tensor | None, /, *, weight: Tensor, normalize: bool) -> Tensor:
    """Take the weighted mean of the models: Σwᵢθᵢ / Σwᵢ (arXiv 2203.05482).

    Args:
        chunk: [n, k] fp32.
        base: unused.
        weight: [n].
        normalize: divide by Σwᵢ; without it the sum stays as it is.

    Returns:
        [k] fp32.
    """
    if normalize:
        weight = weight / weight.sum()
    # Term by term: the sum's order, and so its last bit, doesn't depend on the chunk's size.
    merged = torch.mul(chunk[0], weight[0])
    for model in range(1, len(chunk)):
        merged.addcmul_(chunk[model], weight[model])
    return merged
