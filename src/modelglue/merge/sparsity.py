"""Which entries of task vectors count: cuts by magnitude, and signs that agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelglue.merge.arrays import Array, namespace
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.kernels import Cuts, kept, magnitude_cuts, uniform
from modelglue.merge.kernels.sums import least


@dataclass(frozen=True)
class Trim:
    """What stays of each task vector: the entries above `keep` and not above `drop`.

    Attributes:
        keep, drop: None where every model keeps (drops none of) its entries.
        rescale: per model, the factor that gives it back its sum of magnitudes.
    """

    keep: Cuts | None
    drop: Cuts | None
    rescale: tuple[float, ...] | None


def trim_to(
    whole: Whole, above: Sequence[int], *, without: Sequence[int] = (), rescale: bool
) -> Trim:
    """Find the cuts that keep of each model the `above[i]` largest, less the `without[i]` largest.

    Args:
        whole: a tensor, or all tensors.
        above: one a model.
        without: one a model; none: nothing is left out at the top.
        rescale: whether the factors are wanted, which take one pass more.
    """
    keep = magnitude_cuts(whole, above) if any(k < whole.numel for k in above) else None
    drop = magnitude_cuts(whole, without) if any(without) else None
    trim = Trim(keep, drop, None)
    if not rescale or (keep is None and drop is None):
        return trim
    return Trim(keep, drop, _factors(whole, trim))


def _factors(whole: Whole, trim: Trim) -> tuple[float, ...]:
    """Per model Σ|τ| / Σ|τ ⊙ m|."""

    def sums(chunk: Chunk) -> list[tuple[float, float]]:
        xp, found = namespace(chunk.models), []
        for model, tau in enumerate(chunk.deltas):
            size = abs(tau)
            stays = xp.ones_like(size, dtype=xp.bool)
            if trim.keep is not None:
                stays = stays & kept(size, chunk, _cut(trim.keep, model))
            if trim.drop is not None:
                stays = stays & ~kept(size, chunk, _cut(trim.drop, model))
            total, left = size.sum(dtype=xp.float64), (size * stays).sum(dtype=xp.float64)
            found.append((float(total), float(left)))
        return found

    totals = np.sum(whole.map(sums), axis=0).tolist()
    return tuple(total / left if left else 1.0 for total, left in totals)


def _cut(cuts: Cuts, model: int) -> tuple[int, int]:
    return int(cuts.bits[model]), int(cuts.last[model])


def agreeing(terms: Sequence[Array]) -> list[Array]:
    """Where each of n terms has the sign of their sum, as 0 and 1: n of [k] float32.

    A sum of 0 elects plus; a term of 0 has no sign. (As `task_vector_sum` does it with a consensus,
    for methods that weigh by themselves.)
    """
    xp = namespace(terms[0])
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    plus = total >= 0
    signs = [xp.where(plus, term > 0, term < 0) for term in terms]
    return [xp.asarray(sign, dtype=xp.float32) for sign in signs]


def consensus_sum(terms: Sequence[Array], weights: Sequence[float] | None) -> Array:
    """The sum of the terms that agree with its sign, over the sum of their weights if given."""
    xp = namespace(terms[0])
    signs = agreeing(terms)
    merged, total = terms[0] * signs[0], 0 * signs[0]
    for term, sign in zip(terms[1:], signs[1:], strict=True):
        merged = merged + term * sign
    if weights is None:
        return merged
    for weight, sign in zip(weights, signs, strict=True):
        total = total + weight * sign
    return merged / xp.where(abs(total) <= float(least(weights)), 1.0, total)


def without_outliers(
    whole: Whole, density: Sequence[float], gamma: Sequence[float], *, rescale: bool
) -> Trim:
    """The cuts of Model Breadcrumbs: `gamma` goes at the top, `density` remains."""
    above, without = [], []
    for share, outliers in zip(density, gamma, strict=True):
        stay = int(share * whole.numel)
        top = 0 if share >= 1 else min(int(outliers * whole.numel), whole.numel - stay)
        above.append(top + stay)
        without.append(top)
    return trim_to(whole, above, without=without, rescale=rescale)


def by_rank(tau: Array, width: int, density: float, epsilon: float) -> Array:
    """DELLA's probabilities: density ∓ epsilon, rising with the rank of |τ| within its row.

    Args:
        tau: [k] float32, of whole rows of `width`.
        width: entries in a row.
        density, epsilon: with density ± epsilon between 0 and 1.

    Returns:
        [k] float32. Equal magnitudes: the first has the lower rank; a row of one has density.
    """
    xp = namespace(tau)
    if width < 2:
        return xp.full_like(tau, density)
    # Magnitude and place in one integer, which sorts several times faster than indices do.
    bits = xp.asarray(abs(tau).view(xp.int32), dtype=xp.int64).reshape(-1, width)
    columns = xp.arange(width, device=tau.device)
    ordered = xp.sort((bits << 32) + columns)
    order = (ordered if isinstance(ordered, np.ndarray) else ordered[0]) & 0xFFFFFFFF
    ranks = xp.zeros_like(tau).reshape(-1, width)
    ranks[xp.arange(len(ranks), device=tau.device)[:, None], order] = xp.asarray(
        columns, dtype=xp.float32
    )
    return ranks.reshape(-1) * (2 * epsilon / (width - 1)) + (density - epsilon)


def drawn_by_rank(
    chunk: Chunk, density: Sequence[float], epsilon: Sequence[float], *, rescale: bool
) -> list[Array]:
    """DELLA's task vectors: drawn by rank, divided by their probability if `rescale`."""
    xp, found = namespace(chunk.models), []
    for model, tau in enumerate(chunk.deltas):
        if 0 < density[model] < 1:
            p = by_rank(tau, chunk.width, density[model], epsilon[model])
            draw = xp.asarray(uniform(chunk, model), dtype=xp.float64) / 2**32
            stays = xp.asarray(draw < p, dtype=xp.float32)
            tau = tau * (stays / p if rescale else stays)
        found.append(tau * 0 if density[model] == 0 else tau)
    return found
