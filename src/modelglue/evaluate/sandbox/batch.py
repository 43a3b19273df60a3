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
    start: Start, programs: Sequence[Program], limits: Limits, isolation: Isolation
) -> list[Outcome]:
    """Run identical programs once, the others in parallel; outcomes in the order of `programs`."""
    different = list(dict.fromkeys(programs))
    if interpreter.node() is None and any(p.language == "javascript" for p in different):
        raise SandboxUnavailable("JavaScript programs need node, and there is none on the path")
    if not different:
        return []
    outcomes: dict[Program, Outcome] = {}
    queue = iter(different)
    lock = threading.Lock()
    stop = threading.Event()
    live: set[Worker] = set()

    def next_programs() -> Iterator[Program]:
        while not stop.is_set():
            with lock:
                program = next(queue, None)
            if program is None:
                return
            yield program

    cores = len(os.sched_getaffinity(0))
    alone = isolation == "program"
    enough = len(different) if alone else len(different) // _FEWEST_PROGRAMS
    count = max(1, min(cores, _MOST_WORKERS, enough))
    with ThreadPoolExecutor(count) as pool:
        jobs = [
            pool.submit(_serve, start, limits, next_programs(), outcomes, live, alone=alone)
            for _ in range(count)
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stop.set()
            for worker in tuple(live):
                worker.stop()
            raise
    return [outcomes[program] for program in programs]


def _serve(
    start: Start,
    limits: Limits,
    programs: Iterator[Program],
    outcomes: dict[Program, Outcome],
    live: set[Worker],
    *,
    alone: bool,
) -> None:
    """Run programs in one worker; in a fresh one when the old is lost or could not clean up.

    With `alone` every program has a fresh one.

    The worker starts in the thread that waits for it: bubblewrap ends with its parent thread.
    """
    worker: Worker | None = None
    try:
        for program in programs:
            if worker is None:
                worker = start(limits)
                live.add(worker)
            answer = worker.ask(asdict(program), timeout=limits.wall_seconds + _GRACE)
            if answer is None:
                outcomes[program] = Outcome(False, "killed", "took its sandbox down with it")
            else:
                outcomes[program] = Outcome(answer["passed"], answer["reason"], answer["detail"])
            if alone or answer is None or not answer["clean"]:
                live.discard(worker)
                worker.close()
                worker = None
    finally:
        if worker is not None:
            live.discard(worker)
            worker.close()


def _remove(folder: str) -> None:
    """Delete a tree however deep: `shutil.rmtree` recurses, and a program may have dug deep."""
    subprocess.run(["rm", "-rf", "--", folder], check=False, stderr=subprocess.DEVNULL)
