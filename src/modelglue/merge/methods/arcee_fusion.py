"""Arcee Fusion: take from the second model only what changed where it matters."""

import numpy as np

from modelglue.merge.arrays import Array, like, namespace
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.kernels import magnitudes_cut
from modelglue.merge.method import Law, merge_method

Measured = tuple[np.ndarray, np.float32]


def _measure(whole: Whole, /) -> Measured:
    """Each row's divergence, and the importance from which on entries are taken."""
    rows = np.concatenate(whole.map(_divergence))

    def quartile(share: float) -> np.float32:
        above = whole.numel - int(share * (whole.numel - 1))
        bits, _ = magnitudes_cut(whole, above, lambda chunk: _importance(chunk, rows))
        return np.uint32(bits).view(np.float32)

    first, median, third = map(quartile, (0.25, 0.5, 0.75))
    return rows, median + np.float32(1.5) * (third - first)


def _divergence(chunk: Chunk) -> np.ndarray:
    """KL(softmax(θ) ‖ softmax(θ₀)) of each row: [rows] float32."""
    xp = namespace(chunk.models)
    p, q = (
        _softmax(xp.asarray(array, dtype=xp.float64).reshape(-1, chunk.width)) + 1e-8
        for array in (chunk.fp32[0], chunk.fp32_base)
    )
    divergence = (p * xp.log(p / q)).sum(-1)
    return np.asarray(xp.where(divergence < 0, 0.0, divergence).tolist(), np.float32)


def _softmax(rows: Array) -> Array:
    xp = namespace(rows)
    powers = xp.exp(rows - xp.amax(rows, -1)[:, None])
    return powers / powers.sum(-1)[:, None]


def _importance(chunk: Chunk, rows: np.ndarray) -> Array:
    row = chunk.places // chunk.width
    return abs(chunk.deltas[0]) * like(rows[row], chunk.models)


@merge_method(
    parameters=(),
    laws={Law.PERMUTATION_INVARIANT, Law.ANCHORED},
    base="required",
    models=(1, 1),
    measure=_measure,
    rows=lambda parameters: True,
)
def arcee_fusion(chunk: Chunk, measured: Measured, /) -> Array:
    """Take over the entries of the other model whose change is important, leave the base's.

    An entry's importance is |τ|·KL(p ‖ q), τ = θ₁ − θ₀, with p, q the softmax of its row (last
    dimension) of θ₁ and of θ₀, each plus 1e-8. Entries are taken from θ₁ where their importance is
    at least median + 1.5·(Q₃ − Q₁), with the quartiles of the tensor's importances.

    Source: https://arcee.ai, as implemented in mergekit.

    Differs from mergekit: the divergence is summed in float64, as in float32 rounding outweighs it
    for models as close as a fine-tune and its base; the quartiles of tensors of more than a million
    entries are exact, where mergekit's are of a random sample, another in every run.
    """
    rows, threshold = measured
    xp = namespace(chunk.models)
    taken = xp.asarray(_importance(chunk, rows) >= float(threshold), dtype=xp.float32)
    return chunk.fp32[0] * taken + chunk.fp32_base * (1 - taken)
