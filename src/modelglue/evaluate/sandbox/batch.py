"""Run programs in sandboxes side by side, whatever kind they are: a few for all, or one each."""

import contextlib
import os
import select
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, Any

from modelglue.errors import SandboxUnavailable
from modelglue.evaluate.sandbox import interpreter
from modelglue.evaluate.sandbox.inside import frames
from modelglue.evaluate.sandbox.inside.frames import NOT_STARTED
from modelglue.evaluate.sandbox.interface import Isolation, Limits, Outcome, Program

# What a worker may take beyond a program's own time, before it is given up for lost.
_GRACE = 20.0
_MOST_WORKERS = 8
_FEWEST_PROGRAMS = 8  # a worker's start costs about as much as this many short programs

Start = Callable[[Limits], "Worker"]


class Worker:
    """One running sandbox, from outside."""

    def __init__(
        self, command: Sequence[str], settings: dict[str, Any], *, folder: str | None = None
    ) -> None:
        """Start it and wait until it stands.

        Args:
            command: the program to start; it runs `inside.worker`.
            settings: its first message.
            folder: a temporary folder that goes when the worker goes.

        Raises:
            SandboxUnavailable: it did not come up; says what it said.
        """
        self._folder = folder
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
            cwd="/",
            start_new_session=True,  # Ctrl-C is for us; we end them
        )
        try:
            if self.ask(settings, timeout=_GRACE) is None:
                raise SandboxUnavailable(f"{command[0]} did not start: {self._last_words()}")
        except BaseException:
            self.close()
            raise

    def ask(self, message: dict[str, Any], *, timeout: float) -> dict[str, Any] | None:
        """One message there, one back; None if the worker is lost."""
        requests, replies = self._process.stdin, self._process.stdout
        if requests is None or replies is None:
            return None
        try:
            frames.send(requests.fileno(), message)
        except BrokenPipeError:
            return None
        ready, _, _ = select.select([replies], [], [], timeout)
        answer: dict[str, Any] | None = frames.receive(replies.fileno()) if ready else None
        return answer

    def stop(self) -> None:
        """End it at once, from any thread; whoever waits for an answer gets None."""
        self._process.kill()

    def close(self) -> None:
        """End it and everything in it, and clean up."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._folder is not None:
            _remove(self._folder)

    def _last_words(self) -> str:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"


def run_programs(
    start: Start,
    programs: Sequence[Program],
    limits: Limits,
    isolation: Isolation,
    cores: int | None,
) -> list[Outcome]:
    """Run identical programs once, the others in parallel; outcomes in the order of `programs`.

    Args:
        cores: so many sandboxes side by side at most; None for the cores of this process.

    Raises:
        SandboxUnavailable: sandboxes don't start, or fail by themselves.
    """
    different = list(dict.fromkeys(programs))
    if interpreter.node() is None and any(p.language == "javascript" for p in different):
        raise SandboxUnavailable("JavaScript programs need node, and there is none on the path")
    if not different:
        return []
    outcomes: dict[Program, Outcome] = {}
    queue = iter(different)
    lock = threading.Lock()

    def next_programs() -> Iterator[Program]:
        while True:
            with lock:
                program = next(queue, None)
            if program is None:
                return
            yield program

    alone = isolation == "program"
    enough = len(different) if alone else len(different) // _FEWEST_PROGRAMS
    count = max(1, min(cores or len(os.sched_getaffinity(0)), _MOST_WORKERS, enough))
    desks = [_Desk(start, limits) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        jobs = [pool.submit(_serve, desk, next_programs(), outcomes, alone=alone) for desk in desks]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            for desk in desks:
                desk.stop()
            raise
    return [outcomes[program] for program in programs]


class _Desk:
    """Where programs are run one after another, in one worker as long as it lasts."""

    def __init__(self, start: Start, limits: Limits) -> None:
        self._start, self._limits = start, limits
        self._worker: Worker | None = None
        self.stopped = False

    def ask(self, program: Program) -> dict[str, Any] | None:
        """The worker's answer; None if the worker is lost. One that cannot go on is replaced.

        It starts in the thread that waits for it: bubblewrap ends with its parent thread.
        """
        if self._worker is None:
            self._worker = self._start(self._limits)
        answer = self._worker.ask(asdict(program), timeout=self._limits.wall_seconds + _GRACE)
        if answer is None or not answer["clean"]:
            self.clear()
        return answer

    def clear(self) -> None:
        """End the worker; the next program gets a fresh one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def stop(self) -> None:
        """End the work at once, from any thread."""
        self.stopped = True
        worker = self._worker
        if worker is not None:
            worker.stop()


def _serve(
    desk: _Desk, programs: Iterator[Program], outcomes: dict[Program, Outcome], *, alone: bool
) -> None:
    """Run programs at one desk; with `alone` each in a worker of its own."""
    try:
        for program in programs:
            if desk.stopped:
                return
            outcomes[program] = _outcome(desk, program)
            if alone:
                desk.clear()
    finally:
        desk.clear()


def _outcome(desk: _Desk, program: Program) -> Outcome:
    """What comes of a program; the machine's failures are no verdict on it.

    A worker may be lost to a machine that is out of memory as well as to its program, so the
    program gets a second one, to itself. Only who takes that down, too, has failed.

    Raises:
        SandboxUnavailable: sandboxes fail before the program's first line.
    """
    answer = desk.ask(program)
    if (answer is None or answer["reason"] == NOT_STARTED) and not desk.stopped:
        desk.clear()
        answer = desk.ask(program)
    if answer is None:
        return Outcome(False, "killed", "took its sandbox down with it")
    if answer["reason"] == NOT_STARTED:
        raise SandboxUnavailable(
            f"the sandbox fails before its program's first line: {answer['detail']}. Programs that "
            "were not run are not scored; give the machine room (memory, processes, disk) and "
            "start the command again"
        )
    return Outcome(answer["passed"], answer["reason"], answer["detail"])


def _remove(folder: str) -> None:
    """Delete a tree however deep: `shutil.rmtree` recurses, and a program may have dug deep."""
    subprocess.run(["rm", "-rf", "--", folder], check=False, stderr=subprocess.DEVNULL)
