"""A few threads that take job after job; a job may leave further ones, which come first.

Lighter than a pool of futures: a checkpoint may have tens of thousands of small tensors.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelglue.merge.engine.reading import Workspace


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do.

    Attributes:
        run: does it with the thread's buffers; returns what is to be done further.
        size: what it counts for in the progress.
    """

    run: Callable[[Workspace], Sequence["Job"]]
    size: int


class Crew:
    """Threads with a workspace each.

    Args:
        threads: how many.
        workspace: makes one.
    """

    def __init__(self, threads: int, workspace: Callable[[], Workspace]) -> None:
        self._threads, self._workspace = threads, workspace
        self._condition = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._alive = 0
        self._busy = 0
        self._done = 0
        self._error: BaseException | None = None

    def run(self, jobs: Sequence[Job], *, on_done: Callable[[int], None] | None = None) -> None:
        """Do all jobs; the first error ends it and is raised.

        Args:
            jobs: in the order in which they are begun.
            on_done: called now and then with the size of what is done, from this thread.
        """
        self._jobs.extend(jobs)
        try:
            for i in range(self._threads):
                self._begin(f"merge-{i}")
            while not self._ended(0.1):
                if on_done is not None:
                    on_done(self._done)
        except BaseException as error:  # Ctrl-C: nobody begins another job
            self._fail(error)
            # Whatever else is pressed: the files that they write to stay open until they end.
            while self._alive:
                with contextlib.suppress(KeyboardInterrupt):
                    self._ended(None)
            raise
        if self._error is not None:
            raise self._error
        if on_done is not None:
            on_done(self._done)

    def _begin(self, name: str) -> None:
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        with self._condition:
            self._alive += 1
        try:
            thread.start()
        except BaseException:
            with self._condition:
                self._alive -= 1
            raise

    def _ended(self, seconds: float | None) -> bool:
        """Wait so long until all threads have ended. (An interrupted `join` takes them for it.)"""
        with self._condition:
            return self._condition.wait_for(lambda: not self._alive, seconds)

    def _work(self) -> None:
        try:
            workspace = self._workspace()
            while (job := self._take()) is not None:
                further: Sequence[Job] = ()
                try:
                    further = job.run(workspace)
                finally:
                    self._finish(job, further)
        except BaseException as error:  # noqa: BLE001 (raised again by `run`)
            self._fail(error)
        finally:
            with self._condition:
                self._alive -= 1
                self._condition.notify_all()

    def _take(self) -> Job | None:
        with self._condition:
            # Whoever is busy may still leave something to do.
            self._condition.wait_for(lambda: self._jobs or not self._busy or self._error)
            if self._error is not None or not self._jobs:
                return None
            self._busy += 1
            return self._jobs.popleft()

    def _finish(self, job: Job, further: Sequence[Job]) -> None:
        with self._condition:
            self._busy -= 1
            self._done += job.size
            self._jobs.extendleft(reversed(further))
            if further or not self._busy:
                self._condition.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._condition:
            self._error = self._error or error
            self._condition.notify_all()
