"""A crew does every job or raises, and when it has raised nobody works any more."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from modelglue.merge.engine.crew import Crew, Job
from modelglue.merge.engine.reading import Workspace


def workers() -> list[threading.Thread]:
    """Those still at work; who has done his last job needs a moment to leave."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("merge-")]
    for thread in found:
        thread.join(0.1)
    return [thread for thread in found if thread.is_alive()]


def doing(work: Callable[[], None], further: Sequence[Job] = ()) -> Job:
    def run(workspace: Workspace) -> Sequence[Job]:
        work()
        return further

    return Job(run, 1)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_job_is_done_and_what_jobs_leave_too(threads: int) -> None:
    done: list[int] = []
    told: list[int] = []
    inner = [doing(lambda: done.append(1)) for _ in range(3)]
    Crew(threads, Workspace).run(
        [doing(lambda: done.append(0), inner) for _ in range(20)], on_done=told.append
    )
    assert sorted(done) == [0] * 20 + [1] * 60
    assert told[-1] == 80


def test_the_first_error_ends_it() -> None:
    def fail() -> None:
        raise ValueError("broken")

    done: list[int] = []
    jobs = [doing(fail), *(doing(lambda: done.append(time.sleep(0.01) or 1)) for _ in range(500))]
    with pytest.raises(ValueError, match="broken"):
        Crew(2, Workspace).run(jobs)
    assert len(done) < 50
    assert not workers()


def test_a_workspace_that_cannot_be_made_is_an_error() -> None:
    def none() -> Workspace:
        raise MemoryError("no room")

    with pytest.raises(MemoryError):
        Crew(2, none).run([doing(lambda: None)])


def test_a_thread_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def third_fails(thread: threading.Thread) -> None:
        if thread.name == "merge-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", third_fails)
    with pytest.raises(RuntimeError, match="can't start"):
        Crew(4, Workspace).run([doing(lambda: time.sleep(0.02)) for _ in range(100)])
    assert not workers()


def test_pressing_ctrl_c_twice_leaves_nobody_at_work() -> None:
    def press() -> None:
        for _ in range(2):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        Crew(2, Workspace).run([doing(lambda: time.sleep(0.5)) for _ in range(10)])
    assert not workers()
