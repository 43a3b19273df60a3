"""The kernels on torch tensors, on whatever device they are."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import random as counter
from modelglue.merge.kernels.sums import divisor, least

_LOW = 0xFFFFFFFF
_BLOCK = 1024


def weighted_sum(chunk: Chunk, weights: np.ndarray, base_weight: float) -> Tensor:
    """See `kernels.weighted_sum`."""
    out: Tensor = chunk.models[0] * float(weights[0])
    for i in range(1, chunk.n):
        out += chunk.models[i] * float(weights[i])
    if chunk.base is not None:
        out += chunk.base * float(np.float32(base_weight))
    return out


def gram(chunk: Chunk, of: str) -> np.ndarray:
    """[m, m] float64 of one chunk."""
    rows = _vectors(chunk, of)
    return (rows @ rows.T).cpu().numpy()


def row_grams(chunk: Chunk, of: str) -> np.ndarray:
    """[rows, m, m] float64 of a chunk of whole rows."""
    vectors = _vectors(chunk, of)
    rows = vectors.reshape(len(vectors), -1, chunk.width).transpose(0, 1)
    return (rows @ rows.transpose(1, 2)).cpu().numpy()


def _vectors(chunk: Chunk, of: str) -> Tensor:
    models: Tensor = chunk.models
    base: Any = chunk.base
    if of == "deltas":
        models = models - base
    elif of == "all":
        models = torch.cat([models, base[None]])
    return models.double()


def task_vector_sum(
    chunk: Chunk,
    *,
    weights: np.ndarray,
    scale: float,
    keep: Any,
    drop: Any,
    random: np.ndarray | None,
    rescale: np.ndarray,
    consensus: str | None,
    normalize: bool,
) -> Tensor:
    """See `kernels.task_vector_sum`."""
    base: Any = chunk.base
    factors = weights * rescale
    elected = torch.zeros_like(base)
    poison = torch.zeros_like(base, dtype=torch.bool)
    vectors = []
    for i in range(chunk.n):
        delta: Tensor = chunk.models[i] - base
        poison |= ~torch.isfinite(delta)
        counts = torch.ones_like(poison)
        if keep is not None:
            counts &= _over(delta, chunk, int(keep.bits[i]), int(keep.last[i]))
        if drop is not None:
            counts &= ~_over(delta, chunk, int(drop.bits[i]), int(drop.last[i]))
        if random is not None:
            counts &= uniform(chunk, i) <= counter.limit(float(random[i]))
        vector = torch.where(counts, delta, 0.0) * float(factors[i])
        elected += vector.sign() if consensus == "count" else vector
        vectors.append(vector)
    mixed = elected
    total, limit = float(divisor(weights, normalize)), float(least(weights))
    if consensus is not None:
        sign = torch.where(elected >= 0, 1.0, -1.0)
        mixed, counted = torch.zeros_like(base), torch.zeros_like(base)
        for vector, weight in zip(vectors, weights, strict=True):
            agrees = vector.sign() == sign
            mixed += torch.where(agrees, vector, 0.0)
            counted += torch.where(agrees, float(weight), 0.0)
        if total:
            mixed = mixed / torch.where(counted.abs() <= limit, 1.0, counted)
    elif total:
        mixed = mixed / total
    return torch.where(poison, float("nan"), base + mixed * float(np.float32(scale)))


def _over(delta: Tensor, chunk: Chunk, bits: int, last: int) -> Tensor:
    found = bits_of(delta)
    index = torch.arange(len(delta), device=delta.device) + (chunk.offset + chunk.start)
    return (found > bits) | ((found == bits) & (index <= last))


def uniform(chunk: Chunk, model: int) -> Tensor:
    """See `kernels.uniform`: int64 that holds 32 bits."""
    key, twist = counter.model_keys(chunk.key, model, chunk.start)
    count = torch.arange(chunk.models.shape[1], device=chunk.models.device)
    h = _times((count + (chunk.start & _LOW)) & _LOW, counter.STEP)
    h = (h + key) & _LOW
    h = _times(h ^ (h >> 16), counter.FIRST) ^ twist
    h = _times(h ^ (h >> 15), counter.SECOND)
    return h ^ (h >> 16)


def _times(h: Tensor, factor: int) -> Tensor:
    """The low 32 bits of a product, in halves that int64 holds."""
    low, high = factor & 0xFFFF, factor >> 16
    return (h * low + (((h * high) & 0xFFFF) << 16)) & _LOW


def delta_bits(chunk: Chunk, model: int) -> Tensor:
    """|τ| of one model as the bits of float32: [k] int64."""
    delta: Tensor = chunk.models[model] - chunk.base
    return bits_of(delta)


def bits_of(magnitudes: Tensor) -> Tensor:
    """Magnitudes [k] float32 as bits [k] int64."""
    bits: Tensor = magnitudes.float().contiguous().view(torch.int32).long() & 0x7FFFFFFF
    return bits


def scan(bits: Tensor, low: int, high: int, room: int) -> tuple[int, int, np.ndarray, np.ndarray]:
    """How many bits are above, how many within low … high, and (if at most `room`) which, where."""
    inside = (bits >= low) & (bits <= high)
    within = int(inside.sum())
    places = torch.nonzero(inside).reshape(-1) if within <= room else bits[:0].long()
    found = bits[places].cpu().numpy().astype(np.uint32)
    return int((bits > high).sum()), within, found, places.cpu().numpy()


def scan_deltas(
    chunk: Chunk, model: int, low: int, high: int, room: int
) -> tuple[int, int, np.ndarray, np.ndarray]:
    """The same of `delta_bits`."""
    return scan(delta_bits(chunk, model), low, high, room)


def histogram(bits: Tensor, low: int, high: int, shift: int, bins: int) -> np.ndarray:
    """How many bits within low … high lie in each bin of 2^shift: [bins] int64."""
    inside = bits[(bits >= low) & (bits <= high)] - low
    return torch.bincount(inside >> shift, minlength=bins).cpu().numpy()


def where_equal(bits: Tensor, value: int) -> np.ndarray:
    """The places of the bits that equal `value`: [c] int64."""
    return torch.nonzero(bits == value).reshape(-1).cpu().numpy()


def to_numpy(array: Tensor) -> np.ndarray:
    """The tensor in the host's memory."""
    return array.cpu().numpy()
