"""What methods are made of: the few loops over entries that take nearly all of a merge's time.

Each takes a chunk, or a whole made of chunks, and runs on whatever its arrays are: compiled loops
for numpy (`cpu.py`), torch on its device (`device.py`). Both give the same: which entries are drawn
or cut to the bit, sums within rounding.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from modelglue.merge.arrays import Array, namespace
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.kernels.cuts import Cuts, kept, magnitude_cuts, magnitudes_cut
from modelglue.merge.kernels.dispatch import backend

__all__ = [
    "Cuts",
    "gram",
    "kept",
    "magnitude_cuts",
    "magnitudes_cut",
    "row_grams",
    "task_vector_sum",
    "uniform",
    "weighted_sum",
]

Of = Literal["models", "deltas", "all"]
Consensus = Literal["sum", "count"]


def weighted_sum(chunk: Chunk, weights: Sequence[float], base_weight: float = 0.0) -> Array:
    """Take Σᵢ weights[i]·θᵢ + base_weight·θ₀, term by term in float32.

    Returns:
        [k]; non-finite wherever an input is, whatever its weight.
    """
    return backend(chunk).weighted_sum(chunk, np.asarray(weights, np.float32), base_weight)


def gram(whole: Whole, *, of: Of) -> np.ndarray:
    """Dot products of whole tensors, summed in float64 over blocks of float32.

    Args:
        whole: what to walk over once.
        of: "models", "deltas" (the task vectors θᵢ − θ₀), or "all": the models, then the base.

    Returns:
        [n, n]; [n + 1, n + 1] for "all".
    """
    parts = whole.map(lambda chunk: backend(chunk).gram(chunk, of))
    side = whole.n + (of == "all")
    return sum(parts, np.zeros((side, side)))


def row_grams(chunk: Chunk, *, of: Of) -> np.ndarray:
    """The same for each row (along the last dimension) of a chunk of whole rows.

    Returns:
        [rows, n, n]; [rows, n + 1, n + 1] for "all".
    """
    found: np.ndarray = backend(chunk).row_grams(chunk, of)
    return found


def task_vector_sum(
    chunk: Chunk,
    *,
    weights: Sequence[float],
    scale: float = 1.0,
    keep: Cuts | None = None,
    drop: Cuts | None = None,
    random: Sequence[float] | None = None,
    rescale: Sequence[float] | None = None,
    consensus: Consensus | None = None,
    normalize: bool = False,
) -> Array:
    """Take θ₀ + scale · Σᵢ wᵢ·rescaleᵢ·(τᵢ ⊙ mᵢ) with τᵢ = θᵢ − θ₀.

    Args:
        chunk: with a base.
        weights: n of them.
        scale: λ.
        keep: of each model only the entries above its cut count.
        drop: those above this one do not.
        random: the probability with which an entry counts, one a model; drawn by (key, model,
            flat index).
        rescale: one factor a model, beside its weight; it is not part of what `normalize` sums.
        consensus: only entries count whose sign is the elected one: of the sum of the weighted
            entries, or of the count of their signs; a tie elects plus. An entry of 0 has no sign.
        normalize: divide by Σ wᵢ: without a consensus over all models, with one over those that
            agree. A sum of 0 divides by 1, and so does what rounding leaves of it
            where weights cancel (`sums.least`).

    Returns:
        [k]; non-finite wherever an input is.
    """
    if random is not None and (parts := _one_key_each(chunk)):
        merged = [
            task_vector_sum(
                part,
                weights=weights,
                scale=scale,
                keep=keep,
                drop=drop,
                random=random,
                rescale=rescale,
                consensus=consensus,
                normalize=normalize,
            )
            for part in parts
        ]
        return namespace(chunk.models).concatenate(merged)
    return backend(chunk).task_vector_sum(
        chunk,
        weights=np.asarray(weights, np.float32),
        scale=scale,
        keep=keep,
        drop=drop,
        random=None if random is None else np.asarray(random, np.float64),
        rescale=np.ones(chunk.n, np.float32)
        if rescale is None
        else np.asarray(rescale, np.float32),
        consensus=consensus,
        normalize=normalize,
    )


def uniform(chunk: Chunk, model: int) -> Array:
    """Random bits of every entry, a function of (key, model, flat index) and nothing else.

    Returns:
        [k] integers from 0 to 2³² − 1: uint32 for numpy, int64 for torch.
    """
    if parts := _one_key_each(chunk):
        drawn = [backend(part).uniform(part, model) for part in parts]
        return namespace(chunk.models).concatenate(drawn)
    return backend(chunk).uniform(chunk, model)


def _one_key_each(chunk: Chunk) -> list[Chunk]:
    """The parts before and from a multiple of 2³² on, where draws take another key.

    Empty where no such place lies within, which is nearly everywhere.
    """
    count = chunk.models.shape[1]
    border = -chunk.start % 2**32
    return [chunk.part(0, border), chunk.part(border, count)] if 0 < border < count else []
