"""Whole processes, measured from outside: CPU seconds, wall seconds and peak private memory."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLED_EVERY = 0.02
BUFFER = 4 << 20


@dataclass(frozen=True)
class Spent:
    """What one process took, with the processes that it started.

    Attributes:
        cpu: seconds, user and system, as the kernel tells whoever waits for it.
        wall: seconds from its start to its end.
        private: bytes; the peak of its anonymous and shared-memory pages (RssAnon + RssShmem of
            it and its descendants, sampled). Pages of mapped files are counted against nobody.
        resident: bytes; its own resident peak (VmHWM), with the pages of mapped files.
        output: what it printed.
    """

    cpu: float
    wall: float
    private: int
    resident: int
    output: str = ""

    def to_json(self) -> dict[str, float]:
        """The figures as plain data."""
        return {
            "cpu": round(self.cpu, 3),
            "wall": round(self.wall, 3),
            "private": self.private,
            "resident": self.resident,
        }


def run(
    command: Sequence[str | Path],
    *,
    cores: int,
    environment: Mapping[str, str] | None = None,
) -> Spent:
    """Run a command on that many cores to its end; exits where it fails."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        with _bound_to(cores):
            child = subprocess.Popen(
                [str(word) for word in command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        memory = _Memory(child.pid)
        memory.start()
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        memory.ended.set()
        memory.join()
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if child.returncode:
        sys.exit(f"{' '.join(str(word) for word in command)} failed:\n{text[-3000:]}")
    return Spent(used.ru_utime + used.ru_stime, wall, memory.private, memory.resident, text)


def median(runs: Sequence[Spent]) -> Spent:
    """The median of each figure by itself."""
    return Spent(
        statistics.median(one.cpu for one in runs),
        statistics.median(one.wall for one in runs),
        int(statistics.median(one.private for one in runs)),
        int(statistics.median(one.resident for one in runs)),
    )


def warm(files: Sequence[Path]) -> None:
    """Read the files once, so that the page cache holds them; and let the disk come to rest."""
    os.sync()
    buffer = memoryview(bytearray(BUFFER))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


@contextmanager
def _bound_to(cores: int) -> Iterator[None]:
    """A child started meanwhile runs on the last `cores` cores that this process may use."""
    allowed = os.sched_getaffinity(0)
    if cores > len(allowed):
        sys.exit(f"{cores} cores are wanted, {len(allowed)} may be used")
    os.sched_setaffinity(0, sorted(allowed)[-cores:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class _Memory(threading.Thread):
    """Watches a process's memory from outside until told that it ended."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.ended = threading.Event()
        self.private = 0
        self.resident = 0

    def run(self) -> None:
        while not self.ended.wait(SAMPLED_EVERY):
            sizes = [_sizes(pid) for pid in _family(self.pid)]
            self.private = max(self.private, sum(private for private, _ in sizes))
            self.resident = max(self.resident, sizes[0][1])


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        try:
            children = [
                int(child)
                for task in Path(f"/proc/{parent}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except OSError:  # it ended meanwhile
            continue
        found.extend(children)
    return found


def _sizes(pid: int) -> tuple[int, int]:
    """(private, resident peak) in bytes; zeros once the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    kilobytes = {name: int(size) for name, size in re.findall(r"(\w+):\s+(\d+) kB", status)}
    private = kilobytes.get("RssAnon", 0) + kilobytes.get("RssShmem", 0)
    return private << 10, kilobytes.get("VmHWM", 0) << 10
