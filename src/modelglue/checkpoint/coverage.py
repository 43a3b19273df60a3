"""Which bytes of which tensors were written, exactly."""

import bisect
import threading
from collections.abc import Mapping


class Coverage:
    """The ranges seen of each of several things of known length. Thread-safe."""

    def __init__(self, lengths: Mapping[str, int]) -> None:
        # A thing without bytes is complete from the start.
        self._lengths = {name: length for name, length in lengths.items() if length}
        self._ranges: dict[str, list[tuple[int, int]]] = {}
        self._lock = threading.Lock()

    def add(self, name: str, start: int, end: int) -> bool:
        """Note that [start, end) was written; writing a byte twice is no fault.

        Returns:
            Whether that completed it.
        """
        if start == end:
            return False
        with self._lock:
            ranges = self._ranges.setdefault(name, [])
            # The first range that ends at or after our start, up to the last that begins by our
            # end: all these melt into one.
            first = bisect.bisect_left(ranges, start, key=lambda r: r[1])
            last = bisect.bisect_right(ranges, end, key=lambda r: r[0])
            if first < last:
                start, end = min(start, ranges[first][0]), max(end, ranges[last - 1][1])
            whole = [(0, self._lengths[name])]
            before = ranges == whole
            ranges[first:last] = [(start, end)]
            return not before and ranges == whole

    def missing(self) -> str:
        """Words that name the first gap and count the rest; empty when all is covered."""
        with self._lock:
            lacking = [
                name
                for name, length in self._lengths.items()
                if self._ranges.get(name) != [(0, length)]
            ]
            if not lacking:
                return ""
            start, end = self._gap(lacking[0])
        more = f", and {len(lacking) - 1} more tensors lack bytes" if len(lacking) > 1 else ""
        return f"{lacking[0]} was not written from byte {start:,} to {end:,}{more}"

    def _gap(self, name: str) -> tuple[int, int]:
        ranges = self._ranges.get(name, [])
        start = ranges[0][1] if ranges and ranges[0][0] == 0 else 0
        later = [r[0] for r in ranges if r[0] > start]
        return start, later[0] if later else self._lengths[name]
