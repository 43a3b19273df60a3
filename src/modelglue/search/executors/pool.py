"""Jobs dealt out to workers, each of which may be lost at any moment."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from modelglue.errors import RunError
from modelglue.search.executors import Job
from modelglue.search.problem import Trial

MOST_LOSSES = 3
"""So many workers may be lost over one job, or one after the other before they stand."""


@dataclass(frozen=True)
class Ready:
    """A worker stands and waits for jobs."""


@dataclass(frozen=True)
class Raised:
    """A worker met an error; it still stands.

    Attributes:
        where: the worker's traceback.
    """

    error: Exception
    where: str


@dataclass(frozen=True)
class Lost:
    """A worker is no more."""

    reason: str


Answer = Ready | Trial | Raised | Lost


class Worker(Protocol):
    """One worker, from outside."""

    def begin(self, job: Job) -> None:
        """Give it a job; if it was lost, that is told when it is waited for."""
        ...

    def end(self) -> None:
        """End it at once, whatever it is at."""
        ...


W = TypeVar("W", bound=Worker)


class Pool(Generic[W]):
    """An executor whose workers are replaced when they are lost, and their jobs done again.

    Args:
        workers: how many at most; they start when there are jobs for them.
        hire: starts the worker with that index; its first answer says that it stands.
        wait: waits until some of these workers have an answer.
        on_close: called after all workers have ended.
    """

    def __init__(
        self,
        workers: int,
        hire: Callable[[int], W],
        wait: Callable[[Sequence[W]], list[tuple[W, Answer]]],
        *,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.workers = workers
        self._hire, self._wait, self._on_close = hire, wait, on_close
        self._seats: dict[int, W] = {}
        self._idle: list[W] = []
        self._busy: dict[W, int] = {}  # worker → index of the job that it is at
        self._stillborn = 0

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Trial]]:
        """See `Executor.run`.

        Raises:
            RunError: workers are lost before they stand, or one after the other over one job. The
                candidate need not be to blame, so that is no trial: asked again, it is tried again.
            Exception: what a worker met.
        """
        waiting = deque(range(len(jobs)))
        losses: Counter[int] = Counter()
        try:
            while waiting or self._busy:
                self._staff(len(waiting) + len(self._busy))
                while waiting and self._idle:
                    worker, index = self._idle.pop(0), waiting.popleft()
                    self._busy[worker] = index
                    worker.begin(jobs[index])
                for worker, answer in self._wait(tuple(self._seats.values())):
                    at = self._busy.get(worker)
                    self._hear(worker, answer)
                    if at is None:
                        continue
                    # Told before the worker has another job: whoever kills this process loses no
                    # more trials than there are workers.
                    if isinstance(answer, Trial):
                        yield at, answer
                    elif isinstance(answer, Lost):
                        losses[at] += 1
                        if losses[at] == MOST_LOSSES:
                            raise RunError(_fatal(jobs[at], answer.reason))
                        waiting.appendleft(at)
        finally:
            # After an error or Ctrl-C, or when nobody listens any more: what they answered later
            # would be taken for the answer to another job.
            for worker in tuple(self._busy):
                self._release(worker)

    def close(self) -> None:
        """See `Executor.close`."""
        for worker in tuple(self._seats.values()):
            self._release(worker)
        self._on_close()

    def _staff(self, jobs: int) -> None:
        """Fill empty seats, as far as there are jobs for them."""
        for seat in range(self.workers):
            if len(self._seats) < min(self.workers, jobs) and seat not in self._seats:
                self._seats[seat] = self._hire(seat)

    def _hear(self, worker: W, answer: Answer) -> None:
        if isinstance(answer, Raised):
            self._release(worker)
            answer.error.add_note(f"It was met in a worker:\n{answer.where}")
            raise answer.error
        if isinstance(answer, Lost):
            stood = worker in self._idle or worker in self._busy
            self._release(worker)
            self._stillborn += not stood
            if self._stillborn == MOST_LOSSES:
                raise RunError(
                    f"{MOST_LOSSES} workers in a row were lost while they started; the last one "
                    f"{answer.reason}. Use fewer of them if memory ran out (--workers); a script "
                    "of one's own "
                    'must start them under `if __name__ == "__main__":`'
                )
            return
        self._busy.pop(worker, None)
        self._idle.append(worker)
        self._stillborn = 0

    def _release(self, worker: W) -> None:
        (seat,) = (seat for seat, sits in self._seats.items() if sits is worker)
        del self._seats[seat]
        self._busy.pop(worker, None)
        self._idle = [idle for idle in self._idle if idle is not worker]
        worker.end()


def _fatal(job: Job, reason: str) -> str:
    candidate = ", ".join(f"{name}: {number:g}" for name, number in job.coefficients.items())
    return (
        f"{MOST_LOSSES} workers were lost over one candidate ({candidate}); the last one {reason}. "
        "What was scored before stands, and the same command asks for this one again: with fewer "
        "workers if memory ran out (--workers), or in this process (--executor serial), where its "
        "end can be seen"
    )
