"""Compiled loops over entries.

Small loops over short slices, each of which the compiler turns into vector code, called block by
block so that everything between reading and writing stays in the first-level cache.
"""

import numpy as np

from modelglue.merge.kernels.compiled import (
    BLOCK,
    INFINITE,
    MAGNITUDE,
    S15,
    S16,
    ZERO,
    as_bits,
    compiled,
    number,
    quotient,
    reduction,
)
from modelglue.merge.kernels.random import FIRST, SECOND, STEP

_SIGNED_MAGNITUDE = np.int32(0x7FFFFFFF)
_STEP, _FIRST, _SECOND = np.uint32(STEP), np.uint32(FIRST), np.uint32(SECOND)


@compiled
def decode(x, out):
    """[k] float32 or the bits of bfloat16 → [k] float32."""
    for j in range(out.shape[0]):
        out[j] = number(x[j])


@compiled
def encode(x, out):
    """[k] float32 → [k] uint16 bits of bfloat16, to nearest even; counts the non-finite."""
    bits = x.view(np.uint32)
    bad = np.uint32(0)
    for j in range(bits.shape[0]):
        u = bits[j]
        r = np.uint32(u + np.uint32(0x7FFF) + ((u >> S16) & np.uint32(1))) >> S16
        nan = np.uint32((u & MAGNITUDE) > INFINITE)
        # Rounding would carry a NaN whose lower bits are full into something else.
        r = np.uint32(0x7FC0) if nan else r
        out[j] = np.uint16(r)
        bad += np.uint32((r & np.uint32(0x7F80)) == np.uint32(0x7F80))
    return bad


@compiled
def count_nonfinite(x):
    """How many of [k] float32 are NaN or infinite."""
    bits = x.view(np.uint32)
    bad = np.uint32(0)
    for j in range(bits.shape[0]):
        bad += np.uint32((bits[j] & MAGNITUDE) >= INFINITE)
    return bad


@compiled
def _scale(x, w, out):
    for j in range(out.shape[0]):
        out[j] = w * number(x[j])


@compiled
def add_weighted(x, weight, out):
    """Out += weight · x: [k]."""
    for j in range(out.shape[0]):
        out[j] += weight * number(x[j])


@compiled
def weighted_sum(models, weights, out):
    """models [n, k], weights [n] → out [k]."""
    n, k = models.shape
    for s in range(0, k, BLOCK):
        e = min(k, s + BLOCK)
        _scale(models[0, s:e], weights[0], out[s:e])
        for i in range(1, n):
            add_weighted(models[i, s:e], weights[i], out[s:e])


@compiled
def _subtract(x, base, t):
    for j in range(t.shape[0]):
        t[j] = number(x[j]) - number(base[j])


@compiled
def _task_vector(x, base, t):
    """x − base → t: [B] float32; how many of them are not finite."""
    bad = np.uint32(0)
    for j in range(t.shape[0]):
        delta = number(x[j]) - number(base[j])
        t[j] = delta
        bad += np.uint32((as_bits(delta) & MAGNITUDE) >= INFINITE)
    return bad


@reduction
def _dot(a, b):
    # Products of float32 are exact in float64, and neither overflow nor vanish.
    total = 0.0
    for j in range(a.shape[0]):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@reduction
def _two_dots(a, b, c):
    """A·b and a·c, for which a is looked at once."""
    first = 0.0
    second = 0.0
    for j in range(a.shape[0]):
        x = np.float64(a[j])
        first += x * np.float64(b[j])
        second += x * np.float64(c[j])
    return first, second


@compiled
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
        if m > n:
            decode(base[s:e], f[n, : e - s])
        for i in range(n):
            if minus_base:
                _subtract(models[i, s:e], base[s:e], f[i, : e - s])
            else:
                decode(models[i, s:e], f[i, : e - s])
        for a in range(m):
            for b in range(0, a, 2):
                x, y, z = f[a, : e - s], f[b, : e - s], f[b + 1, : e - s]
                one, other = _two_dots(x, y, z)
                out[row, a, b] += one
                out[row, a, b + 1] += other
            if a % 2 == 0:
                out[row, a, a] += _dot(f[a, : e - s], f[a, : e - s])
        s = e
    for row in range(out.shape[0]):
        for a in range(m):
            for b in range(a):
                out[row, b, a] = out[row, a, b]


@compiled
def _add_task_vector(x, base, w, out):
    """Out [B] += w · (x − base); how many of x − base are not finite."""
    bad = np.uint32(0)
    for j in range(out.shape[0]):
        delta = number(x[j]) - number(base[j])
        out[j] += w * delta
        bad += np.uint32((as_bits(delta) & MAGNITUDE) >= INFINITE)
    return bad


@compiled
def _cut(t, bits, last, above):
    """Set to 0 what is not above the cut, or (above=False) what is.

    Magnitudes have 31 bits: compared as signed numbers, four bytes each.
    """
    m = t.shape[0]
    limit = np.int32(min(bits, MAGNITUDE))
    if last >= m - 1:
        _cut_at(t, np.int32(limit - np.int32(1)), above)
    elif last < 0:
        _cut_at(t, limit, above)
    else:
        # The last tie lies in here.
        _cut_at(t[: last + 1], np.int32(limit - np.int32(1)), above)
        _cut_at(t[last + 1 :], limit, above)


@compiled
def _cut_at(t, limit, above):
    x = t.view(np.int32)
    if above:
        for j in range(x.shape[0]):
            x[j] = x[j] if (x[j] & _SIGNED_MAGNITUDE) > limit else np.int32(0)
    else:
        for j in range(x.shape[0]):
            x[j] = x[j] if (x[j] & _SIGNED_MAGNITUDE) <= limit else np.int32(0)


@compiled
def _trim(x, base, bits, last, w, t, elected):
    """What of w · (x − base) is above the cut → t, 0 for the rest; added to elected.

    The same as `_task_vector`, `_cut` and `_weigh` in one loop.
    """
    limit = np.int32(min(bits, MAGNITUDE))
    ties = min(max(last + 1, 0), t.shape[0])
    bad = _trim_at(
        x[:ties], base[:ties], np.int32(limit - np.int32(1)), w, t[:ties], elected[:ties]
    )
    return bad + _trim_at(x[ties:], base[ties:], limit, w, t[ties:], elected[ties:])


@compiled
def _trim_at(x, base, limit, w, t, elected):
    bad = np.uint32(0)
    for j in range(t.shape[0]):
        delta = number(x[j]) - number(base[j])
        magnitude = np.uint32(as_bits(delta) & MAGNITUDE)
        kept = w * delta if np.int32(magnitude) > limit else ZERO
        t[j] = kept
        elected[j] += kept
        bad += np.uint32(magnitude >= INFINITE)
    return bad


@compiled
def _bits(counter, key, twist):
    """The random bits of one counter; see `random`."""
    h = np.uint32(np.uint32(counter * _STEP) + key)
    h = np.uint32(h ^ (h >> S16))
    h = np.uint32(np.uint32(h * _FIRST) ^ twist)
    h = np.uint32(h ^ (h >> S15))
    h = np.uint32(h * _SECOND)
    return np.uint32(h ^ (h >> S16))


@compiled
def _draw(t, key, twist, counter, limit):
    """Set to 0 what is not drawn."""
    x = t.view(np.uint32)
    for j in range(x.shape[0]):
        drawn = _bits(np.uint32(counter + np.uint32(j)), key, twist) <= limit
        x[j] = x[j] if drawn else np.uint32(0)


@compiled
def uniform(key, twist, counter, out):
    """The random bits of consecutive entries: [k] uint32."""
    for j in range(out.shape[0]):
        out[j] = _bits(np.uint32(counter + np.uint32(j)), key, twist)


@compiled
def _weigh(t, w, elected):
    for j in range(t.shape[0]):
        t[j] *= w
        elected[j] += t[j]


@compiled
def _weigh_counting(t, w, elected):
    for j in range(t.shape[0]):
        t[j] *= w
        one = np.float32(1) if t[j] > ZERO else ZERO
        elected[j] += -np.float32(1) if t[j] < ZERO else one


@compiled
def _add_agreeing(t, elected, out):
    for j in range(t.shape[0]):
        same = (t[j] > ZERO) == (elected[j] >= ZERO)
        out[j] += t[j] if same else ZERO


@compiled
def _add_and_count_agreeing(t, elected, w, out, divisor):
    for j in range(t.shape[0]):
        same = (t[j] > ZERO) if elected[j] >= ZERO else (t[j] < ZERO)
        out[j] += t[j] if same else ZERO
        divisor[j] += w if same else ZERO


@quotient
def _finish_divided(base, scale, divisor, least, out):
    for j in range(out.shape[0]):
        d = divisor[j]
        out[j] = number(base[j]) + scale * (out[j] / (np.float32(1) if np.abs(d) <= least else d))


@compiled
def _finish(base, scale, out):
    for j in range(out.shape[0]):
        out[j] = number(base[j]) + scale * out[j]


@compiled
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
    everything = consensus == 0 and not keep_bits.size and not drop_bits.size and not keys.size
    trimmed = consensus != 2 and keep_bits.size and not drop_bits.size and not keys.size
    t = np.empty((n, BLOCK), np.float32)
    elected = np.empty(BLOCK, np.float32)
    counted = np.empty(BLOCK, np.float32)
    for s in range(0, k, BLOCK):
        m = min(k - s, BLOCK)
        b = base[s : s + m]
        o = out[s : s + m]
        elected[:] = ZERO
        bad = np.uint32(0)
        for i in range(n):
            if everything:
                bad += _add_task_vector(models[i, s : s + m], b, factors[i], elected[:m])
                continue
            ti = t[i, :m]
            if trimmed:
                x, bits, last = models[i, s : s + m], keep_bits[i], keep_last[i] - start - s
                bad += _trim(x, b, bits, last, factors[i], ti, elected[:m])
                continue
            bad += _task_vector(models[i, s : s + m], b, ti)
            if keep_bits.shape[0]:
                _cut(ti, keep_bits[i], keep_last[i] - start - s, True)
            if drop_bits.shape[0]:
                _cut(ti, drop_bits[i], drop_last[i] - start - s, False)
            if keys.shape[0]:
                if limits[i] < 0:
                    ti[:] = ZERO
                else:
                    _draw(ti, keys[i], twists[i], np.uint32(counter + s), np.uint32(limits[i]))
            if consensus == 2:
                _weigh_counting(ti, factors[i], elected[:m])
            else:
                _weigh(ti, factors[i], elected[:m])
        if consensus == 0:
            o[:] = elected[:m]
            if divisor != ZERO:
                for j in range(m):
                    o[j] /= divisor
        else:
            o[:] = ZERO
            counted[:] = ZERO
            for i in range(n):
                if divisor != ZERO:
                    _add_and_count_agreeing(t[i, :m], elected[:m], weights[i], o, counted[:m])
                else:
                    _add_agreeing(t[i, :m], elected[:m], o)
        if consensus != 0 and divisor != ZERO:
            _finish_divided(b, scale, counted[:m], least, o)
        else:
            _finish(b, scale, o)
        if bad:
            for i in range(n):
                _task_vector(models[i, s : s + m], b, t[i, :m])
                _poison(t[i, :m], o)


@compiled
def _poison(t, out):
    """Set out to NaN where t is not finite."""
    for j in range(t.shape[0]):
        if not np.isfinite(t[j]):
            out[j] = np.float32(np.nan)
