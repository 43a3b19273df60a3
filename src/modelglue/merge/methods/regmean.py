"""RegMean: the matrix whose outputs are nearest to all models' on their texts (2212.09849)."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from modelglue.errors import MergeError
from modelglue.merge.arrays import Array, floats
from modelglue.merge.chunk import Chunk, Rows, Whole
from modelglue.merge.kernels import weighted_sum
from modelglue.merge.method import Law, Parameter, merge_method
from modelglue.merge.parameters import STATISTICS, WEIGHT, refuse_no_weight

if TYPE_CHECKING:
    from torch import Tensor

RIDGE = 1e-6
"""Of the mean diagonal entry: inputs that no text has excited fall back to the weighted mean."""

_BLOCK = 1 << 20
"""Entries of a Gram matrix that are read at a time."""

_ONE = threading.Lock()
"""One matrix is solved for at a time: each takes far more memory than chunks, and all cores."""


def _measure(whole: Whole, /, *, weight: tuple[float, ...], alpha: float) -> Array | None:
    """The whole result, [numel] float32; None where there are no statistics."""
    if len(whole.shape) != 2 or len(whole.statistics) != whole.n:
        return None
    with _ONE:
        return _solve(whole, weight, alpha)


def _solve(whole: Whole, weight: tuple[float, ...], alpha: float) -> Array:
    import torch

    example = whole.chunk(0).models
    device = "cpu" if isinstance(example, np.ndarray) else example.device
    size = whole.shape[1]
    step = max(1, _BLOCK // size)
    total = torch.zeros((size, size), dtype=torch.float64, device=device)
    moved = torch.zeros(whole.shape, dtype=torch.float64, device=device)
    own = torch.empty(whole.shape, device=device)
    for model, (factor, gram) in enumerate(zip(weight, whole.statistics, strict=True)):
        if gram.shape != (size, size):
            raise MergeError(f"a Gram matrix is {list(gram.shape)}, its tensor has {size} inputs")
        _gather(whole, model, own)
        for start in range(0, size, step):
            block = _shrunk(gram, start, min(start + step, size), alpha).to(device)
            total[start : start + step].add_(block, alpha=factor)
            moved.addmm_(own[:, start : start + step].double(), block, alpha=factor)
    excited = float(total.trace()) / size
    ridge = (RIDGE * excited if excited else 1.0) / sum(weight)
    total.diagonal().add_(ridge * sum(weight))
    _add_models(whole, [ridge * factor for factor in weight], moved)
    triangle, failed = torch.linalg.cholesky_ex(total)
    if failed and total.isfinite().all():
        raise MergeError("statistics are no Gram matrices: their sum has negative eigenvalues")
    del total
    for rows in range(0, len(own), step):
        some = slice(rows, rows + step)
        own[some] = torch.cholesky_solve(moved[some].T, triangle).T
    return own.view(-1).numpy() if isinstance(example, np.ndarray) else own.view(-1)


def _gather(whole: Whole, model: int, out: Tensor) -> None:
    """One model's whole matrix."""
    import torch

    flat = out.view(-1)

    def put(chunk: Chunk) -> None:
        part = torch.as_tensor(floats(chunk.models[model]))
        flat[chunk.start : chunk.start + len(part)] = part

    whole.map(put)


def _add_models(whole: Whole, factors: list[float], out: Tensor) -> None:
    """Add Σ factorᵢ·Wᵢ."""
    import torch

    flat = out.view(-1)

    def add(chunk: Chunk) -> None:
        for factor, theta in zip(factors, chunk.models, strict=True):
            part = torch.as_tensor(floats(theta))
            flat[chunk.start : chunk.start + len(part)].add_(part, alpha=factor)

    whole.map(add)


def _shrunk(gram: Rows, start: int, stop: int, alpha: float) -> Tensor:
    """Rows of a Gram matrix, what is off the diagonal × alpha: float64."""
    import torch

    block = torch.as_tensor(gram.read(start, stop)).to(torch.float64, copy=True)
    diagonal = block[:, start:stop].diagonal().clone()
    block.mul_(alpha)
    block[:, start:stop].diagonal().copy_(diagonal)
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
    measure=_measure,
    check=refuse_no_weight,
)
def regmean(
    chunk: Chunk, measured: Array | None, /, *, weight: tuple[float, ...], alpha: float
) -> Array:
    """Solve for the matrix that imitates all: (Σλᵢ WᵢGᵢ)(ΣλᵢGᵢ)⁻¹ (arXiv 2212.09849).

    W [out, in] maps inputs x to W·x, and Gᵢ = XᵀX [in, in] is of the inputs that model i's matrix
    meets on calibration text: the result minimises Σλᵢ‖WXᵢ − WᵢXᵢ‖², λᵢ the model's `weight`.
    What is off the diagonal of Gᵢ is multiplied by `alpha`, as in the paper, which keeps it well
    conditioned; 1e-6 of the mean diagonal entry is added to each, so that inputs that never occur
    get the weighted mean. Matrices without statistics, and all other tensors, get it too.

    Memory: the result is solved for at once, one matrix at a time, by a Cholesky factor of ΣλᵢGᵢ:
    16·in² + 12·out·in bytes, and then 4·out·in until all is written. Each Gᵢ is read once, in
    blocks of rows.
    """
    if measured is None:
        return weighted_sum(chunk, [w / sum(weight) for w in weight])
    return measured[chunk.start : chunk.start + chunk.models.shape[1]]
