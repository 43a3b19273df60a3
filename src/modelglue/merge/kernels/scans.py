"""Compiled loops that look for magnitudes, as the bits of float32, which order as they do."""

import numpy as np

from modelglue.merge.kernels.compiled import BLOCK, MAGNITUDE, as_bits, compiled, number


@compiled
def _mark(x, low, high, mask):
    """Mark in [B] uint8 which magnitudes of x [B] are within low … high; how many are above."""
    span = np.uint32(high - low)
    above = np.uint32(0)
    within = np.uint32(0)
    for j in range(x.shape[0]):
        magnitude = np.uint32(x[j] & MAGNITUDE)
        above += np.uint32(magnitude > high)
        inside = np.uint32(np.uint32(magnitude - low) <= span)
        within += inside
        mask[j] = np.uint8(inside)
    return above, within


@compiled
def _byte_of(bit):
    """Which of eight bytes a bit is the lowest of."""
    k = np.int64(0)
    for width in (4, 2, 1):
        if bit >> np.uint64(8 * width):
            k += width
            bit >>= np.uint64(8 * width)
    return k


@compiled
def _scan(x, low, high, start, mask, found, places, counts):
    """Add to counts (above, within, found) what bits [B] hold; see `scan`."""
    if x.shape[0] < mask.shape[0]:
        mask[x.shape[0] :] = 0
    above, within = _mark(x, low, high, mask)
    counts[0] += above
    counts[1] += within
    w = counts[2]
    if within == 0 or w + within > found.shape[0]:
        return
    # Few are within: eight marks are looked at together, and only what is marked is visited.
    eights = mask.view(np.uint64)
    for i in range((x.shape[0] + 7) // 8):
        marks = eights[i]
        while marks:
            j = 8 * i + _byte_of(marks & (~marks + np.uint64(1)))
            marks &= marks - np.uint64(1)
            found[w] = x[j] & MAGNITUDE
            places[w] = np.uint32(start + j)
            w += 1
    counts[2] = w


@compiled
def magnitudes(model, base, out):
    """|model − base| as the bits of float32: [k] uint32."""
    for j in range(out.shape[0]):
        out[j] = as_bits(number(model[j]) - number(base[j])) & MAGNITUDE


@compiled
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


@compiled
def scan_deltas(model, base, low, high, found, places):
    """The same of |model − base| as the bits of float32."""
    counts = np.zeros(3, np.int64)
    mask = np.zeros(BLOCK, np.uint8)
    bits = np.empty(BLOCK, np.uint32)
    for s in range(0, model.shape[0], BLOCK):
        m = min(model.shape[0] - s, BLOCK)
        magnitudes(model[s : s + m], base[s : s + m], bits[:m])
        _scan(bits[:m], low, high, s, mask, found, places, counts)
    return counts


@compiled
def histogram(bits, low, high, shift, out):
    """Count bits [k] that lie in low … high into bins of 2^shift: out [bins] int64."""
    span = np.uint32(high - low)
    for j in range(bits.shape[0]):
        x = np.uint32(bits[j] - low)
        if x <= span:
            out[np.int64(x) >> shift] += 1


@compiled
def small_cuts(models, base, counts, bits, last):
    """The cuts of a small whole by sorting: into bits [n] and last [n]; see `cuts.Cuts`.

    Of models [n, k], of which counts [n] entries are to be above, 0 < counts[i] < k.
    """
    n, k = models.shape
    found = np.empty(k, np.uint32)
    for i in range(n):
        magnitudes(models[i], base, found)
        ordered = np.sort(found)
        place = k - counts[i]
        value = ordered[place]
        ties = 0
        while place + ties < k and ordered[place + ties] == value:
            ties += 1
        for j in range(k):
            if found[j] == value:
                ties -= 1
                if ties == 0:
                    last[i] = j
                    break
        bits[i] = value
