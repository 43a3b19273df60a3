"""The magnitude above which exactly so many entries lie: without sorting, mostly in one pass.

A sample tells between which two magnitudes the cut must be, with a wide margin; one pass counts
what is above and collects what is between, and the cut is among those. Where the sample was wrong
or very much lies between, a histogram of what is between narrows it, pass by pass: the bits of a
float32 order as its magnitude does, so bins are exact and few passes end it. What is held does not
grow with the tensor.
What is small is looked at as a whole, what is tiny in one compiled loop. Equal magnitudes at the
cut: the lower flat index is kept.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk, Whole
from modelglue.merge.kernels.dispatch import backend

Bits = Callable[[Chunk], Array]
"""Magnitudes of a chunk's entries as the bits of float32."""

Scanned = tuple[int, int, np.ndarray, np.ndarray]
"""How many are above, how many within; of the latter (unless too many) which, and where."""

HIGHEST = 0x7FFFFFFF
_EVERY = np.iinfo(np.int64).max
_ROOM = 1 << 16
_BINS_LOG2 = 16
_FINE_LOG2 = 12
_SMALL = 1 << 14
_TINY = 1 << 10
_HELD = 1 << 19


@dataclass(frozen=True)
class Cuts:
    """Per model, what is above: larger magnitudes, and of equal ones the first.

    Attributes:
        bits: [n] uint32, the magnitude at the cut as float32's bits.
        last: [n] int64, the flat index of the last entry of that magnitude which is above.
    """

    bits: np.ndarray
    last: np.ndarray


def magnitude_cuts(whole: Whole, counts: Sequence[int]) -> Cuts:
    """Per model, the cut above which exactly `counts[i]` entries of |τᵢ| lie."""
    if whole.numel <= _TINY and all(0 < count < whole.numel for count in counts):
        chunk = whole.chunk(0)
        if isinstance(chunk.models, np.ndarray) and chunk.models.shape[1] == whole.numel:
            return Cuts(*backend(chunk).small_cuts(chunk, counts))
    searches = [_of_deltas(model, count) for model, count in enumerate(counts)]
    found = _find(whole, searches)
    return Cuts(
        np.array([bits for bits, _ in found], np.uint32),
        np.array([last for _, last in found], np.int64),
    )


def magnitudes_cut(whole: Whole, count: int, of: Callable[[Chunk], Array]) -> tuple[int, int]:
    """The cut above which exactly `count` entries of any magnitudes lie.

    Args:
        whole: what to walk over.
        count: how many.
        of: chunk → [k] float32 that are not negative.

    Returns:
        (bits, last), as `kept` takes them.
    """

    def read(chunk: Chunk) -> Array:
        return backend(chunk).bits_of(of(chunk))

    def scan(chunk: Chunk, low: int, high: int) -> Scanned:
        scanned: Scanned = backend(chunk).scan(read(chunk), low, high, _ROOM)
        return scanned

    return _find(whole, [_Search(read, scan, count)])[0]


def kept(magnitudes: Array, chunk: Chunk, cut: tuple[int, int]) -> Array:
    """Which entries of a chunk are above a cut: [k] bool."""
    bits = backend(chunk).bits_of(magnitudes)
    limit, last = cut
    above = bits > limit
    ties = bits == limit
    here = last - (chunk.offset + chunk.start) + 1
    ties[max(min(here, len(ties)), 0) :] = False
    return above | ties


@dataclass
class _Search:
    """One cut that is looked for: in low … high there is the entry number `count` from the top."""

    read: Bits
    scan: Callable[[Chunk, int, int], Scanned]
    count: int
    low: int = 0
    high: int = HIGHEST
    cut: tuple[int, int] | None = None

    @property
    def shift(self) -> int:
        """Log₂ of a bin's width, so that the bins cover low … high."""
        return max(0, (self.high - self.low).bit_length() - _BINS_LOG2)

    def count_bins(self, chunk: Chunk) -> np.ndarray:
        """How many of a chunk's entries lie in each bin: [bins] int64."""
        bins: np.ndarray = backend(chunk).histogram(
            self.read(chunk), self.low, self.high, self.shift, 1 << _BINS_LOG2
        )
        return bins

    def bins_of(self, bits: np.ndarray) -> np.ndarray:
        """The same of bits that lie within low … high."""
        return np.bincount((bits - self.low) >> self.shift, minlength=1 << _BINS_LOG2)


def _of_deltas(model: int, count: int) -> _Search:
    def read(chunk: Chunk) -> Array:
        return backend(chunk).delta_bits(chunk, model)

    def scan(chunk: Chunk, low: int, high: int) -> Scanned:
        scanned: Scanned = backend(chunk).scan_deltas(chunk, model, low, high, _ROOM)
        return scanned

    return _Search(read, scan, count)


class _Pass:
    """What one pass tells one search, from chunks in any order and by any thread."""

    def __init__(self, search: _Search) -> None:
        self.search = search
        self.above = self.within = 0
        self.found: list[tuple[int, np.ndarray, np.ndarray]] | None = []
        """(where the chunk begins, bits, places in it) of what is within; None: too many."""
        self.bins: np.ndarray | None = None
        self.counts: list[tuple[int, int]] = []
        """(where the chunk begins, how many are within)."""
        self._held = 0
        self._lock = threading.Lock()

    def look(self, chunk: Chunk) -> None:
        """Take a chunk into account."""
        search, start = self.search, chunk.offset + chunk.start
        above, within, found, places = search.scan(chunk, search.low, search.high)
        whole = within == len(found)
        with self._lock:
            self.above += above
            self.within += within
            self.counts.append((start, within))
            if self.found is not None and whole and self._held + within <= _HELD:
                self._held += within
                self.found.append((start, found, places))
                return
            before, self.found = self.found or [], None
        if search.low == search.high:
            return
        counted = search.count_bins(chunk) if not whole else search.bins_of(found)
        for _, bits, _ in before:
            counted += search.bins_of(bits)
        with self._lock:
            self.bins = counted if self.bins is None else self.bins + counted


def _find(whole: Whole, searches: Sequence[_Search]) -> list[tuple[int, int]]:
    for search in searches:
        if search.count >= whole.numel:
            search.cut = (0, _EVERY)
        elif search.count <= 0:
            search.cut = (0xFFFFFFFF, -1)
    if whole.numel <= _SMALL:
        _at_once(whole, _open(searches))
    _bracket(whole, _open(searches))
    while pending := _open(searches):
        _narrow(whole, pending)
    return [search.cut for search in searches if search.cut is not None]


def _open(searches: Sequence[_Search]) -> list[_Search]:
    return [search for search in searches if search.cut is None]


def _at_once(whole: Whole, searches: Sequence[_Search]) -> None:
    """The cuts of a small whole: all its magnitudes side by side."""
    if not searches:
        return
    bits = np.empty((len(searches), whole.numel), np.uint32)

    def look(chunk: Chunk) -> None:
        first = chunk.offset + chunk.start
        for row, search in zip(bits, searches, strict=True):
            found = backend(chunk).to_numpy(search.read(chunk))
            row[first : first + len(found)] = found

    whole.map(look)
    for search, row, ordered in zip(searches, bits, np.sort(bits), strict=True):
        place = whole.numel - search.count
        value = ordered[place]
        ties = ordered.searchsorted(value, "right") - place
        search.cut = (int(value), int((row == value).nonzero()[0][ties - 1]))


def _bracket(whole: Whole, searches: Sequence[_Search]) -> None:
    """Set low and high from a sample, five standard deviations of its quantile apart."""
    if not searches:
        return
    chunk = whole.sample(min(max(4096, whole.numel // 128), 1 << 19))
    for search in searches:
        bits = backend(chunk).to_numpy(search.read(chunk)).astype(np.uint32)
        size = len(bits)
        share = 1 - search.count / whole.numel
        margin = 5 * math.sqrt(size * share * (1 - share)) + 5
        first, last = math.floor(share * size - margin), math.ceil(share * size + margin)
        if first > 0:
            search.low, _ = _from_top(bits, size - first, 0, HIGHEST)
        if last < size - 1:
            search.high, _ = _from_top(bits, size - last, 0, HIGHEST)


def _narrow(whole: Whole, searches: Sequence[_Search]) -> None:
    """One pass: the cut itself, or a narrower bracket, for every search."""
    passes = [_Pass(search) for search in searches]

    def look(chunk: Chunk) -> None:
        for one in passes:
            one.look(chunk)

    whole.map(look)
    for one in passes:
        _judge(whole, one)


def _judge(whole: Whole, seen: _Pass) -> None:
    search, wanted = seen.search, seen.search.count - seen.above
    if wanted <= 0:
        search.low, search.high = search.high + 1, HIGHEST
    elif wanted > seen.within:
        search.low, search.high = 0, search.low - 1
    elif seen.found is not None:
        parts = sorted(seen.found, key=lambda part: part[0])
        bits = np.concatenate([found for _, found, _ in parts])
        value, larger = _from_top(bits, wanted, search.low, search.high)
        tie = int(np.flatnonzero(bits == value)[wanted - larger - 1])
        for start, found, places in parts:
            if tie < len(found):
                search.cut = (value, start + int(places[tie]))
                break
            tie -= len(found)
    elif seen.bins is not None:
        from_top = np.cumsum(seen.bins[::-1])
        chosen = len(from_top) - 1 - int(np.searchsorted(from_top, wanted))
        width = 1 << search.shift
        search.low += chosen * width
        search.high = min(search.low + width - 1, search.high)
    else:
        last = _EVERY if wanted == seen.within else _last_tie(whole, seen, wanted)
        search.cut = (search.low, last)


def _from_top(bits: np.ndarray, rank: int, low: int, high: int) -> tuple[int, int]:
    """Number `rank` from the top of bits that lie within low … high, and how many are larger."""
    shift = max(0, (high - low).bit_length() - _FINE_LOG2)
    bins = (bits - np.uint32(low)) >> np.uint32(shift)
    from_top = np.cumsum(np.bincount(bins)[::-1])
    place = int(np.searchsorted(from_top, rank))
    larger = int(from_top[place - 1]) if place else 0
    inside = np.sort(bits[bins == len(from_top) - 1 - place])
    value = int(inside[len(inside) - (rank - larger)])
    return value, larger + int(np.count_nonzero(inside > value))


def _last_tie(whole: Whole, seen: _Pass, ties: int) -> int:
    """The flat index of number `ties` of the entries within, which are all of one magnitude."""
    before = np.cumsum([count for _, count in sorted(seen.counts)])
    index = int(np.searchsorted(before, ties))
    chunk = whole.chunk(index)
    places = backend(chunk).where_equal(seen.search.read(chunk), seen.search.low)
    within = ties - (int(before[index - 1]) if index else 0)
    return chunk.offset + chunk.start + int(places[within - 1])
