"""Compiled loops over entries.

Small loops over short slices, each of which the compiler turns into vector code, called block by
block so that everything between reading and writing stays in the first-level cache. Compiled code
is kept beside this file, or in the user's cache where that cannot be written; where neither can,
every process compiles anew, which takes seconds.
"""

from functools import partial
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from modelglue.merge.kernels.random import FIRST, SECOND, STEP

BLOCK = 1024
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SIGNED_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.uint32(0x7F800000)
_ZERO = np.float32(0)
_S15, _S16 = np.uint32(15), np.uint32(16)
_STEP, _FIRST, _SECOND = np.uint32(STEP), np.uint32(FIRST), np.uint32(SECOND)


def _compile(function: Any, **options: Any) -> Any:
    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it
        return njit(nogil=True, **options)(function)


_reduction = partial(_compile, fastmath={"reassoc", "contract"})
_quotient = partial(_compile, error_model="numpy")  # without a check for 0 before each division


def _load(x: Any, f: Any) -> None:
    raise NotImplementedError


@overload(_load, jit_options={"nogil": True})
def _load_as(x: Any, f: Any) -> Any:
    """Float32 of an array: the numbers, or bfloat16 given as the upper half of its bits."""
    if x.dtype == types.uint16:

        def bits(x: Any, f: Any) -> None:
            out = f.view(np.uint32)
            for j in range(x.shape[0]):
                out[j] = np.uint32(x[j]) << _S16

        return bits

    def numbers(x: Any, f: Any) -> None:
        for j in range(x.shape[0]):
            f[j] = x[j]

    return numbers


@_compile
def decode(x, out):
    """[k] uint16 bits of bfloat16 → [k] float32."""
    _load(x, out)


@_compile
def encode(x, out):
    """[k] float32 → [k] uint16 bits of bfloat16, to nearest even; counts the non-finite."""
    bits = x.view(np.uint32)
    bad = np.uint32(0)
    for j in range(bits.shape[0]):
        u = bits[j]
        r = np.uint32(u + np.uint32(0x7FFF) + ((u >> _S16) & np.uint32(1))) >> _S16
        nan = np.uint32((u & _MAGNITUDE) > _INFINITE)
        # Rounding would carry a NaN whose lower bits are full into something else.
        r = np.uint32(0x7FC0) if nan else r
        out[j] = np.uint16(r)
        bad += np.uint32((r & np.uint32(0x7F80)) == np.uint32(0x7F80))
    return bad


@_compile
def count_nonfinite(x):
    """How many of [k] float32 are NaN or infinite."""
    bits = x.view(np.uint32)
    bad = np.uint32(0)
    for j in range(bits.shape[0]):
        bad += np.uint32((bits[j] & _MAGNITUDE) >= _INFINITE)
    return bad


@_compile
def _scale(f, w, out):
    for j in range(f.shape[0]):
        out[j] = w * f[j]


@_compile
def _add_scaled(f, w, out):
    for j in range(f.shape[0]):
        out[j] += w * f[j]


@_compile
def weighted_sum(models, weights, out):
    """models [n, k], weights [n] → out [k]."""
    n, k = models.shape
    scratch = np.empty(BLOCK, np.float32)
    for s in range(0, k, BLOCK):
        e = min(k, s + BLOCK)
        f = scratch[: e - s]
        for i in range(n):
            _load(models[i, s:e], f)
            if i == 0:
                _scale(f, weights[i], out[s:e])
            else:
                _add_scaled(f, weights[i], out[s:e])


@_compile
def add_weighted(x, weight, out):
    """Out += weight · x: [k]."""
    k = x.shape[0]
    scratch = np.empty(BLOCK, np.float32)
    for s in range(0, k, BLOCK):
        e = min(k, s + BLOCK)
        _load(x[s:e], scratch[: e - s])
        _add_scaled(scratch[: e - s], weight, out[s:e])


@_compile
def _subtract(a, b):
    for j in range(a.shape[0]):
        a[j] -= b[j]


@_reduction
def _dot(a, b):
    # Products of float32 are exact in float64, and neither overflow nor vanish.
    total = 0.0
    for j in range(a.shape[0]):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@_compile
def grams(models, base, minus_base, width, first, out):
    """Add dot products to out [rows, m, m]: of models [n, k], less base [k] or with it as the last.

    Entry j belongs to row (first + j) // width of out.
    """
    n, k = models.shape
    m = out.shape[1]
    f = np.empty((n + 1, BLOCK), np.float32)
    s = 0
    while s < k:
        row = (first + s) // width
        e = min(k, s + BLOCK, (row + 1) * width - first)
        if m > n or minus_base:
            _load(base[s:e], f[n, : e - s])
        for i in range(n):
            _load(models[i, s:e], f[i, : e - s])
            if minus_base:
                _subtract(f[i, : e - s], f[n, : e - s])
        for a in range(m):
            for b in range(a + 1):
                out[row, a, b] += _dot(f[a, : e - s], f[b, : e - s])
        s = e


@_compile
def _cut(t, bits, last, above):
    """Set to 0 what is not above the cut, or (above=False) what is.

    Magnitudes have 31 bits: compared as signed numbers, four bytes each.
    """
    m = t.shape[0]
    limit = np.int32(min(bits, _MAGNITUDE))
    if last >= m - 1:
        _cut_at(t, np.int32(limit - np.int32(1)), above)
    elif last < 0:
        _cut_at(t, limit, above)
    else:
        # The last tie lies in here.
        _cut_at(t[: last + 1], np.int32(limit - np.int32(1)), above)
        _cut_at(t[last + 1 :], limit, above)


@_compile
def _cut_at(t, limit, above):
    x = t.view(np.int32)
    if above:
        for j in range(x.shape[0]):
            x[j] = x[j] if (x[j] & _SIGNED_MAGNITUDE) > limit else np.int32(0)
    else:
        for j in range(x.shape[0]):
            x[j] = x[j] if (x[j] & _SIGNED_MAGNITUDE) <= limit else np.int32(0)


@_compile
def _bits(counter, key, twist):
    """The random bits of one counter; see `random`."""
    h = np.uint32(np.uint32(counter * _STEP) + key)
    h = np.uint32(h ^ (h >> _S16))
    h = np.uint32(np.uint32(h * _FIRST) ^ twist)
    h = np.uint32(h ^ (h >> _S15))
    h = np.uint32(h * _SECOND)
    return np.uint32(h ^ (h >> _S16))


@_compile
def _draw(t, key, twist, counter, limit):
    """Set to 0 what is not drawn."""
    x = t.view(np.uint32)
    for j in range(x.shape[0]):
        drawn = _bits(np.uint32(counter + np.uint32(j)), key, twist) <= limit
        x[j] = x[j] if drawn else np.uint32(0)


@_compile
def uniform(key, twist, counter, out):
    """The random bits of consecutive entries: [k] uint32."""
    for j in range(out.shape[0]):
        out[j] = _bits(np.uint32(counter + np.uint32(j)), key, twist)


@_compile
def _weigh(t, w, elected):
    for j in range(t.shape[0]):
        t[j] *= w
        elected[j] += t[j]


@_compile
def _weigh_counting(t, w, elected):
    for j in range(t.shape[0]):
        t[j] *= w
        one = np.float32(1) if t[j] > _ZERO else _ZERO
        elected[j] += -np.float32(1) if t[j] < _ZERO else one


@_compile
def _add_agreeing(t, elected, out):
    for j in range(t.shape[0]):
        same = (t[j] > _ZERO) == (elected[j] >= _ZERO)
        out[j] += t[j] if same else _ZERO


@_compile
def _count_agreeing(t, elected, w, divisor):
    for j in range(t.shape[0]):
        same = (t[j] > _ZERO) if elected[j] >= _ZERO else (t[j] < _ZERO)
        divisor[j] += w if same else _ZERO


@_quotient
def _divide(out, divisor, least):
    for j in range(out.shape[0]):
        d = divisor[j]
        out[j] /= np.float32(1) if np.abs(d) <= least else d


@_compile
def _finish(base, scale, out):
    for j in range(out.shape[0]):
        out[j] = base[j] + scale * out[j]


@_compile
def task_vector_sum(
    models,
    base,
    start,
    counter,
    weights,
    factors,
    scale,
    keep,
    drop,
    draws,
    consensus,
    divisor,
    least,
    out,
):
    """One pass: subtract, cut, draw, weigh, elect, sum. See `kernels.task_vector_sum`.

    Args:
        models, base: [n, k], [k].
        start: flat index of the first entry, as cuts count.
        counter: its low 32 bits within the tensor, as draws count.
        weights: [n]: counted by the divisor.
        factors: [n]: weight times rescaling: what τ is multiplied by.
        scale: λ.
        keep, drop: (bits [n], last [n]); empty arrays for none.
        draws: (keys [n], twists [n], limits [n] int64 (−1: nothing)); empty arrays for none.
        consensus: 0 none, 1 by sum, 2 by count.
        divisor: 0 for none, else what to divide by; with a consensus it is counted.
        least: a counted divisor that is no larger is 0, and divides by 1.
        out: [k].
    """
    n, k = models.shape
    keep_bits, keep_last = keep
    drop_bits, drop_last = drop
    keys, twists, limits = draws
    b = np.empty(BLOCK, np.float32)
    t = np.empty((n, BLOCK), np.float32)
    elected = np.empty(BLOCK, np.float32)
    counted = np.empty(BLOCK, np.float32)
    for s in range(0, k, BLOCK):
        m = min(k - s, BLOCK)
        o = out[s : s + m]
        _load(base[s : s + m], b[:m])
        elected[:] = _ZERO
        bad = np.uint32(0)
        for i in range(n):
            ti = t[i, :m]
            _load(models[i, s : s + m], ti)
            _subtract(ti, b[:m])
            bad += count_nonfinite(ti)
            if keep_bits.shape[0]:
                _cut(ti, keep_bits[i], keep_last[i] - start - s, True)
            if drop_bits.shape[0]:
                _cut(ti, drop_bits[i], drop_last[i] - start - s, False)
            if keys.shape[0]:
                if limits[i] < 0:
                    ti[:] = _ZERO
                else:
                    _draw(ti, keys[i], twists[i], np.uint32(counter + s), np.uint32(limits[i]))
            if consensus == 2:
                _weigh_counting(ti, factors[i], elected[:m])
            else:
                _weigh(ti, factors[i], elected[:m])
        if consensus == 0:
            o[:] = elected[:m]
            if divisor != _ZERO:
                for j in range(m):
                    o[j] /= divisor
        else:
            o[:] = _ZERO
            for i in range(n):
                _add_agreeing(t[i, :m], elected[:m], o)
            if divisor != _ZERO:
                counted[:] = _ZERO
                for i in range(n):
                    _count_agreeing(t[i, :m], elected[:m], weights[i], counted[:m])
                _divide(o, counted[:m], least)
        _finish(b[:m], scale, o)
        if bad:
            for i in range(n):
                _load(models[i, s : s + m], t[i, :m])
                _poison(t[i, :m], b[:m], o)


@_compile
def _poison(f, b, out):
    """Set out to NaN where f − b is not finite."""
    for j in range(f.shape[0]):
        if not np.isfinite(f[j] - b[j]):
            out[j] = np.float32(np.nan)


@_compile
def _magnitude(x):
    for j in range(x.shape[0]):
        x[j] &= _MAGNITUDE


@_compile
def _above(x, high):
    total = np.uint32(0)
    for j in range(x.shape[0]):
        total += np.uint32(x[j] > high)
    return total


@_compile
def _within(x, low, span, mask):
    """Mark in [B] uint8 which of x are within; how many."""
    total = np.uint32(0)
    for j in range(x.shape[0]):
        inside = np.uint32(x[j] - low) <= span
        mask[j] = np.uint8(inside)
        total += np.uint32(inside)
    return total


@_compile
def _scan(x, low, high, start, mask, found, places, counts):
    """Add to counts (above, within, found) what bits [B] hold; see `scan`."""
    counts[0] += _above(x, high)
    inside = _within(x, low, np.uint32(high - low), mask)
    counts[1] += inside
    if inside == 0 or counts[2] + inside >= found.shape[0]:
        return
    w = counts[2]
    # Few are within: eight marks are looked at together, and what is not marked is overwritten.
    eights = mask.view(np.uint64)
    for i in range((x.shape[0] + 7) // 8):
        if eights[i]:
            for j in range(8 * i, min(8 * i + 8, x.shape[0])):
                found[w] = x[j]
                places[w] = np.uint32(start + j)
                w += np.int64(mask[j])
    counts[2] = w


@_compile
def scan(bits, low, high, found, places):
    """How many of bits [k] are above `high`, and which lie in low … high.

    Returns:
        [3]: how many are above, within, and of these in `found` (with their places in `places`):
        as many as fit.
    """
    counts = np.zeros(3, np.int64)
    mask = np.zeros(BLOCK, np.uint8)
    for s in range(0, bits.shape[0], BLOCK):
        _scan(bits[s : s + BLOCK], low, high, s, mask, found, places, counts)
    return counts


@_compile
def scan_deltas(model, base, low, high, found, places):
    """The same of |model − base| as the bits of float32."""
    counts = np.zeros(3, np.int64)
    mask = np.zeros(BLOCK, np.uint8)
    f = np.empty(BLOCK, np.float32)
    b = np.empty(BLOCK, np.float32)
    x = f.view(np.uint32)
    for s in range(0, model.shape[0], BLOCK):
        m = min(model.shape[0] - s, BLOCK)
        _load(model[s : s + m], f[:m])
        _load(base[s : s + m], b[:m])
        _subtract(f[:m], b[:m])
        _magnitude(x[:m])
        _scan(x[:m], low, high, s, mask, found, places, counts)
    return counts


@_compile
def histogram(bits, low, high, shift, out):
    """Count bits [k] that lie in low … high into bins of 2^shift: out [bins] int64."""
    span = np.uint32(high - low)
    for j in range(bits.shape[0]):
        x = np.uint32(bits[j] - low)
        if x <= span:
            out[np.int64(x) >> shift] += 1


@_compile
def magnitudes(model, base, out):
    """|model − base| as the bits of float32: [k] uint32."""
    f = out.view(np.float32)
    scratch = np.empty(BLOCK, np.float32)
    for s in range(0, model.shape[0], BLOCK):
        e = min(model.shape[0], s + BLOCK)
        _load(model[s:e], f[s:e])
        _load(base[s:e], scratch[: e - s])
        _subtract(f[s:e], scratch[: e - s])
        _magnitude(out[s:e])
