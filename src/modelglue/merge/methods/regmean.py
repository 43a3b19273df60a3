"""RegMean: the matrix whose outputs are nearest to all models' on their texts (2212.09849)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from modelglue.errors import MergeError
from modelglue.merge.arrays import Array, namespace
from modelglue.merge.chunk import Chunk, Rows, Whole
from modelglue.merge.kernels import weighted_sum
from modelglue.merge.method import Law, Parameter, merge_method
from modelglue.merge.parameters import STATISTICS, WEIGHT, refuse_no_weight

RIDGE = 1e-6
"""Of the mean diagonal entry: inputs that no text has excited fall back to the weighted mean."""

_BLOCK = 1 << 20
"""Entries of a Gram matrix that are in memory at a time."""


@dataclass(frozen=True)
class Factor:
    """What all chunks of one matrix share.

    Attributes:
        inverse: of ΣλᵢGᵢ: [in, in] float64.
        ridge: what was added to each Gᵢ's diagonal.
        grams: the Gᵢ, read row block by row block.
    """

    inverse: np.ndarray
    ridge: float
    grams: Sequence[Rows]


def _factor(whole: Whole, /, *, weight: tuple[float, ...], alpha: float) -> Factor | None:
    if len(whole.shape) != 2 or len(whole.statistics) != whole.n:
        return None
    size = whole.shape[1]
    total = np.zeros((size, size))
    for factor, gram in zip(weight, whole.statistics, strict=True):
        if gram.shape != (size, size):
            raise MergeError(f"a Gram matrix is {list(gram.shape)}, its tensor has {size} inputs")
        for start, stop in _blocks(size):
            total[start:stop] += factor * _shrunk(gram, start, stop, alpha, 0.0)
    excited = float(np.trace(total)) / size
    ridge = (RIDGE * excited if excited else 1.0) / sum(weight)
    total[np.diag_indices(size)] += ridge * sum(weight)
    return Factor(np.linalg.inv(total), ridge, whole.statistics)


def _blocks(size: int) -> list[tuple[int, int]]:
    step = max(1, _BLOCK // size)
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def _shrunk(gram: Rows, start: int, stop: int, alpha: float, ridge: float) -> np.ndarray:
    """Rows of a Gram matrix, what is off the diagonal × alpha: float64."""
    rows = gram.read(start, stop)
    block = np.array(rows if isinstance(rows, np.ndarray) else rows.cpu().numpy(), np.float64)
    own = np.arange(stop - start), np.arange(start, stop)
    diagonal = block[own] + ridge
    block *= alpha
    block[own] = diagonal
    return block


@merge_method(
    parameters=(
        replace(WEIGHT, low=0),
        STATISTICS,
        Parameter(
            "alpha", "merge", "multiplies what is off a Gram matrix's diagonal", 0.9, low=0, high=1
        ),
    ),
    laws=set(Law) - {Law.ELEMENTWISE},
    statistics="gram",
    measure=_factor,
    check=refuse_no_weight,
)
def regmean(
    chunk: Chunk, measured: Factor | None, /, *, weight: tuple[float, ...], alpha: float
) -> Array:
    """Solve for the matrix that imitates all: (Σλᵢ WᵢGᵢ)(ΣλᵢGᵢ)⁻¹ (arXiv 2212.09849).

    W [out, in] maps inputs x to W·x, and Gᵢ = XᵀX [in, in] is of the inputs that model i's matrix
    meets on calibration text: the result minimises Σλᵢ‖WXᵢ − WᵢXᵢ‖², λᵢ the model's `weight`.
    What is off the diagonal of Gᵢ is multiplied by `alpha`, as in the paper, which keeps it well
    conditioned; 1e-6 of the mean diagonal entry is added to each, so that inputs that never occur
    get the weighted mean. Matrices without statistics, and all other tensors, get it too.

    Memory: 16·in² bytes while ΣλᵢGᵢ is inverted, 8·in² afterwards; the Gᵢ are read in blocks, anew
    for every chunk.
    """
    if measured is None:
        return weighted_sum(chunk, [w / sum(weight) for w in weight])
    size = len(measured.inverse)
    if chunk.models.shape[1] % size:
        raise MergeError(f"a row of {size} entries is longer than a chunk, and regmean takes rows")
    xp = namespace(chunk.models)
    models = xp.asarray(chunk.fp32, dtype=xp.float64).reshape(chunk.n, -1, size)
    moved = models[0] * 0
    for factor, matrix, gram in zip(weight, models, measured.grams, strict=True):
        for start, stop in _blocks(size):
            block = _shrunk(gram, start, stop, alpha, measured.ridge)
            moved = moved + matrix[:, start:stop] @ (factor * _beside(block, matrix))
    return xp.asarray(moved @ _beside(measured.inverse, moved), dtype=xp.float32).reshape(-1)


def _beside(values: np.ndarray, array: Array) -> Array:
    """The same numbers in float64, in `array`'s library and on its device."""
    if isinstance(array, np.ndarray):
        return values
    return namespace(array).as_tensor(values, device=array.device)
