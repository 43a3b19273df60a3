"""The floor under any merge: read all inputs, write the output's bytes, bring them to the disk.

Each thread reads through one reused buffer of 4 MiB and, for every block of each input that it has
read, writes one of the output; at the end the output is synced. Prints the seconds that this took,
without the interpreter's start.

    python benchmarks/floor.py --threads 2 --output FILE --bytes N INPUT…
"""

import argparse
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

BUFFER = 4 << 20

Job = tuple[int, int, int]
"""(which input, or -1 for the output; offset; bytes)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("inputs", type=Path, nargs="+")
    arguments = parser.parse_args()
    start = time.perf_counter()
    copy(arguments.inputs, arguments.output, size=arguments.bytes, threads=arguments.threads)
    print(time.perf_counter() - start)


def copy(inputs: Sequence[Path], output: Path, *, size: int, threads: int) -> None:
    """Read all of `inputs` and write `size` bytes to `output`, synced."""
    sources = [os.open(path, os.O_RDONLY) for path in inputs]
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.posix_fallocate(target, 0, size)
    jobs = interleaved([path.stat().st_size for path in inputs], size)
    lock = threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(BUFFER))
        while True:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            source, offset, count = job
            if source < 0:
                os.pwrite(target, buffer[:count], offset)
            else:
                os.preadv(sources[source], [buffer[:count]], offset)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.fsync(target)
    for descriptor in (*sources, target):
        os.close(descriptor)


def interleaved(inputs: Sequence[int], output: int) -> Iterator[Job]:
    """The blocks of all files, those of the same offset together, the output's last."""
    sizes = [*enumerate(inputs), (-1, output)]
    for offset in itertools.count(0, BUFFER):
        if all(offset >= size for _, size in sizes):
            return
        for source, size in sizes:
            if offset < size:
                yield source, offset, min(BUFFER, size - offset)


if __name__ == "__main__":
    main()
