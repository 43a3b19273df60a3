"""Processes beside this one, each with a resident model."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from modelglue.search.executors import Factory, Job
from modelglue.search.executors.bench import Bench, Seat
from modelglue.search.executors.pool import Answer, Lost, Pool

_CONTEXT = multiprocessing.get_context("spawn")


class Process:
    """One worker, from outside."""

    def __init__(self, factory: bytes, seat: Seat) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_work, args=(theirs, factory, seat), name=f"worker-{seat.index}", daemon=True
        )
        with _uninterrupted():
            self._process.start()
        theirs.close()  # or the end of the process would not be the end of the line

    def begin(self, job: Job) -> None:
        """See `Worker.begin`."""
        with suppress(OSError):
            self.connection.send((dict(job.coefficients), job.block))

    def answer(self) -> Answer:
        """What it has to say."""
        try:
            answer: Answer = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return Lost(_how(self._process.exitcode))
        return answer

    def end(self) -> None:
        """See `Worker.end`. It holds nothing that would be worth a farewell."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def processes(factory: Factory, *, workers: int) -> Pool[Process]:
    """An executor of so many processes on this machine.

    They share its cores evenly, each with no more threads than `OMP_NUM_THREADS` allows this one.

    Ctrl-C is this process's matter: it ends the others, and they end by themselves should it be
    killed.
    """
    pickled = pickle.dumps(factory)
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(share, int(given)) if given.isdigit() and int(given) else share
    return Pool(workers, lambda index: Process(pickled, Seat(index, threads)), _answers)


def _answers(workers: Sequence[Process]) -> list[tuple[Process, Answer]]:
    by_connection = {worker.connection: worker for worker in workers}
    ready = [by_connection[each] for each in wait(list(by_connection)) if each in by_connection]
    return [(worker, worker.answer()) for worker in ready]


def _how(exit_code: int | None) -> str:
    """How a process ended, as the end of a sentence."""
    if exit_code is None or exit_code >= 0:
        return f"ended by itself with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """What is started here ignores Ctrl-C from its first moment on."""
    resource_tracker.ensure_running()  # its start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: "Connection[Any, Any]", factory: bytes, seat: Seat) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bench = Bench(factory, seat)
    with suppress(EOFError, OSError):  # the parent is no more
        connection.send(bench.build())
        while True:
            connection.send(bench.evaluate(*connection.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)  # whatever the main thread is at
