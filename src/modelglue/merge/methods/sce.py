"""SCE: select by variance, calculate weights by energy, erase minorities (2408.07990)."""

import numpy as np

from modelglue.merge.arrays import Array, namespace
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.kernels import kept, magnitudes_cut
from modelglue.merge.method import Law, Parameter, merge_method
from modelglue.merge.parameters import INT8_MASK
from modelglue.merge.sparsity import agreeing

Measured = tuple[tuple[int, int] | None, tuple[float, ...]]


def _measure(whole: Whole, /, *, select_topk: float) -> Measured:
    """The cut in variance, and each model's share."""
    cut = None
    if select_topk < 1:
        varied = sum(whole.map(lambda chunk: int((_variance(chunk.deltas) != 0).sum())))
        cut = magnitudes_cut(
            whole, int(select_topk * varied), lambda chunk: _variance(chunk.deltas)
        )

    def energies(chunk: Chunk) -> list[float]:
        xp = namespace(chunk.models)
        return [float((delta * delta).sum(dtype=xp.float64)) for delta in _selected(chunk, cut)]

    energy = np.sum(whole.map(energies), axis=0)
    total = energy.sum()
    return cut, tuple(energy / total if total else np.full(whole.n, 1 / whole.n))


def _variance(deltas: Array) -> Array:
    """Between the models, term by term so that every library rounds alike: [k]."""
    n, mean, variance = len(deltas), deltas[0], 0.0
    for delta in deltas[1:]:
        mean = mean + delta
    mean = mean / n
    for delta in deltas:
        variance = variance + (delta - mean) * (delta - mean)
    return variance / n


def _selected(chunk: Chunk, cut: tuple[int, int] | None) -> list[Array]:
    deltas = chunk.deltas
    if cut is None:
        return [*deltas]
    stays = namespace(deltas).asarray(kept(_variance(deltas), chunk, cut), dtype=deltas.dtype)
    return [delta * stays for delta in deltas]


@merge_method(
    parameters=(
        Parameter(
            "select_topk",
            "merge",
            "the fraction of entries that stay, those that vary most between models",
            default=1.0,
            low=0,
            high=1,
        ),
        INT8_MASK,
    ),
    laws=set(Law) - {Law.ELEMENTWISE},
    base="required",
    measure=_measure,
)
def sce(chunk: Chunk, measured: Measured, /, *, select_topk: float, int8_mask: bool) -> Array:
    """Select, calculate, erase: average task vectors by their energy (arXiv 2408.07990).

    Of the entries where the τᵢ = θᵢ − θ₀ differ at all, the `select_topk` of largest variance over
    the models stay (rounded down; of equal ones the first), tensor by tensor; wᵢ = Στᵢ² / ΣΣτⱼ² of
    what stays; γ = sign(Στᵢ), plus where the sum is 0. Returns θ₀ + Σ_A wᵢτᵢ / Σ_A wᵢ over the
    models A whose entry has the sign γ.

    Differs from mergekit: it falls back to equal weights where the mean squares sum to less than
    1e-6, which fine-tuning's small task vectors nearly always do; here only where all are 0. It
    divides by at least 1e-6, which shrinks entries that only a model of small weight agrees with.
    """
    cut, shares = measured
    xp = namespace(chunk.models)
    selected = _selected(chunk, cut)
    signs = agreeing(selected)
    merged, total = selected[0] * 0, signs[0] * 0
    for share, delta, sign in zip(shares, selected, signs, strict=True):
        merged = merged + delta * (sign * float(share))
        total = total + sign * float(share)
    return chunk.fp32_base + merged / xp.where(total == 0, 1.0, total)
