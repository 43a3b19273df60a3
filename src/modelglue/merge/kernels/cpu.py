"""The kernels on numpy arrays: what `loops` compiles, called with what methods say."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import loops, random, scans
from modelglue.merge.kernels.sums import divisor, least

_NO_CUT = (np.empty(0, np.uint32), np.empty(0, np.int64))
_NO_DRAW = (np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.int64))


def weighted_sum(chunk: Chunk, weights: np.ndarray, base_weight: float) -> np.ndarray:
    """See `kernels.weighted_sum`."""
    out = np.empty(chunk.models.shape[1], np.float32)
    loops.weighted_sum(chunk.models, weights, out)
    if chunk.base is not None:
        loops.add_weighted(chunk.base, np.float32(base_weight), out)
    return out


def gram(chunk: Chunk, of: str) -> np.ndarray:
    """[m, m] float64 of one chunk."""
    total: np.ndarray = _grams(chunk, of, width=chunk.models.shape[1])[0]
    return total


def row_grams(chunk: Chunk, of: str) -> np.ndarray:
    """[rows, m, m] float64 of a chunk of whole rows."""
    return _grams(chunk, of, width=chunk.width)


def _grams(chunk: Chunk, of: str, *, width: int) -> np.ndarray:
    n, k = chunk.models.shape
    side = n + 1 if of == "all" else n
    out = np.zeros((k // width, side, side))
    base = chunk.base if chunk.base is not None else chunk.models[0]
    loops.grams(chunk.models, base, of == "deltas", width, 0, out)
    return out


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
) -> np.ndarray:
    """See `kernels.task_vector_sum`."""
    out = np.empty(chunk.models.shape[1], np.float32)
    loops.task_vector_sum(
        chunk.models,
        chunk.base,
        chunk.offset + chunk.start,
        chunk.start,
        weights,
        weights * rescale,
        np.float32(scale),
        _NO_CUT if keep is None else (keep.bits, keep.last),
        _NO_CUT if drop is None else (drop.bits, drop.last),
        _NO_DRAW if random is None else _draws(chunk, random),
        {None: 0, "sum": 1, "count": 2}[consensus],
        divisor(weights, normalize),
        least(weights),
        out,
    )
    return out


def _draws(chunk: Chunk, probabilities: np.ndarray) -> tuple[np.ndarray, ...]:
    keys = [random.model_keys(chunk.key, i, chunk.start) for i in range(chunk.n)]
    both = np.array(keys, np.uint32).T
    return both[0].copy(), both[1].copy(), _limits(tuple(probabilities.tolist()))


@lru_cache
def _limits(probabilities: tuple[float, ...]) -> np.ndarray:
    return np.array([random.limit(p) for p in probabilities], np.int64)


def uniform(chunk: Chunk, model: int) -> np.ndarray:
    """See `kernels.uniform`."""
    key, twist = random.model_keys(chunk.key, model, chunk.start)
    out = np.empty(chunk.models.shape[1], np.uint32)
    loops.uniform(np.uint32(key), np.uint32(twist), np.uint32(chunk.start & 0xFFFFFFFF), out)
    return out


def delta_bits(chunk: Chunk, model: int) -> np.ndarray:
    """|τ| of one model as the bits of float32: [k] uint32."""
    out = np.empty(chunk.models.shape[1], np.uint32)
    scans.magnitudes(chunk.models[model], chunk.base, out)
    return out


def small_cuts(chunk: Chunk, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """See `scans.small_cuts`."""
    bits, last = np.empty(chunk.n, np.uint32), np.empty(chunk.n, np.int64)
    scans.small_cuts(chunk.models, chunk.base, np.array(counts, np.int64), bits, last)
    return bits, last


def bits_of(magnitudes: np.ndarray) -> np.ndarray:
    """Magnitudes [k] float32 as bits [k] uint32."""
    bits: np.ndarray = np.ascontiguousarray(magnitudes, np.float32).view(np.uint32)
    return bits & np.uint32(0x7FFFFFFF)


Scanned = tuple[int, int, np.ndarray, np.ndarray]
"""How many bits are above, how many within; of the latter (if at most `room`) which, and where."""


def scan(bits: np.ndarray, low: int, high: int, room: int) -> Scanned:
    """Look at bits [k] for what is above `high` and what lies in low … high."""
    found, places = _room(room)
    counts = scans.scan(bits, np.uint32(low), np.uint32(high), found, places)
    return _scanned(counts, found, places)


def scan_deltas(chunk: Chunk, model: int, low: int, high: int, room: int) -> Scanned:
    """The same of `delta_bits`, in one pass."""
    found, places = _room(room)
    counts = scans.scan_deltas(
        chunk.models[model], chunk.base, np.uint32(low), np.uint32(high), found, places
    )
    return _scanned(counts, found, places)


def _room(room: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(room, np.uint32), np.empty(room, np.uint32)


def _scanned(counts: np.ndarray, found: np.ndarray, places: np.ndarray) -> Scanned:
    above, within, known = map(int, counts)
    kept = known if known == within else 0
    return above, within, found[:kept].copy(), places[:kept].copy()


def histogram(bits: np.ndarray, low: int, high: int, shift: int, bins: int) -> np.ndarray:
    """How many bits within low … high lie in each bin of 2^shift: [bins] int64."""
    out = np.zeros(bins, np.int64)
    scans.histogram(bits, np.uint32(low), np.uint32(high), shift, out)
    return out


def where_equal(bits: np.ndarray, value: int) -> np.ndarray:
    """The places of the bits that equal `value`: [c] int64."""
    places: np.ndarray = np.flatnonzero(bits == np.uint32(value))
    return places


def to_numpy(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array
