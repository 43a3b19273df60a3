"""The program that runs inside a sandbox: takes programs one by one, runs each in a fork.

Protocol: the first message is the settings, answered by an empty object once everything stands;
each later one is a program, answered by its outcome. A program is read only when the one before it
is gone, so no fork ever holds a second program in its memory.
"""

import contextlib
import os
import secrets
import select
import shutil
import signal
import socket
import tempfile
import time
from typing import Any

from . import confine, frames, harness

_TICK = 0.1
_MANY_FILES = 4096
_LAST_WORDS = 200
_REQUESTS, _REPLIES = 3, 4


def main() -> None:
    """Serve until the host hangs up."""
    # Standard streams are left to the programs: none of them ever sees the host's pipes.
    os.dup2(0, _REQUESTS)
    os.dup2(1, _REPLIES)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    settings = frames.receive(_REQUESTS)
    if settings["protection"] != "none":
        confine.hide()
    harness.prepare()
    frames.send(_REPLIES, {})
    while (program := frames.receive(_REQUESTS)) is not None:
        frames.send(_REPLIES, _run(program, settings))
    if settings["protection"] != "namespaces":
        _remove(settings["scratch"])  # the host may be dead and cannot


def _run(program: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    try:
        home = tempfile.mkdtemp(dir=settings["scratch"])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output, output_end = os.pipe()
        pid = os.fork()
    except OSError as error:
        lost = {"passed": False, "reason": frames.NOT_STARTED, "detail": repr(error)}
        return {**lost, "clean": False}
    if pid == 0:
        harness.child(program, settings, home, theirs, output_end)
    theirs.close()
    os.close(output_end)
    watch = _Watch(ours, output, home, settings)
    try:
        watch.until_the_end()
        code, seconds = _kill_and_reap(pid, alone=settings["protection"] == "namespaces")
    finally:
        ours.close()
        os.close(output)
        _empty(settings["scratch"])
    outcome = watch.outcome(code, seconds)
    outcome["clean"] = not os.listdir(settings["scratch"])
    return outcome


class _Watch:
    """Everything that is known of a running program from outside it."""

    def __init__(
        self, channel: socket.socket, output: int, home: str, settings: dict[str, Any]
    ) -> None:
        self._channel = channel
        self._output = output
        self._home = home
        self._limits = settings["limits"]
        self._watch_disk = settings["protection"] != "namespaces"
        self._printed = 0
        self._tail = b""
        self._nonce = b""
        self._started = False
        self._passed = False
        self._verdict: tuple[str, str] | None = None

    def until_the_end(self) -> None:
        """Return when the program has ended or must."""
        deadline = time.monotonic() + self._limits["wall_seconds"]
        look_again = time.monotonic() + _TICK
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._output, select.POLLIN)
        open_ends = {self._channel.fileno(), self._output}
        while open_ends and self._verdict is None and not self._passed:
            left = deadline - time.monotonic()
            if left <= 0:
                self._verdict = ("timeout", f"ran longer than {self._limits['wall_seconds']:g} s")
                break
            for fd, _ in poll.poll(min(left, _TICK) * 1000):
                more = self._hear() if fd == self._channel.fileno() else self._drain()
                if not more:
                    poll.unregister(fd)
                    open_ends.discard(fd)
            if self._watch_disk and time.monotonic() >= look_again:
                look_again = time.monotonic() + _TICK
                if _usage(self._home) > self._limits["disk"]:
                    self._verdict = ("killed", f"filled {self._limits['disk']} bytes of disk")

    def outcome(self, code: int, seconds: float) -> dict[str, Any]:
        """The verdict: a pass only by the handshake, never by the exit code."""
        cpu = self._limits["seconds"]
        if self._passed:
            reason, detail = "passed", ""
        elif not self._started:
            words = self._verdict[1] if self._verdict else f"exit code {code}{self._last_words()}"
            reason, detail = frames.NOT_STARTED, words
        elif self._verdict is not None:
            reason, detail = self._verdict
        elif code == -signal.SIGXCPU or (code == -signal.SIGKILL and seconds >= cpu):
            reason, detail = "timeout", f"used more than {cpu:g} s of CPU time"
        elif code < 0 and b"out of memory" in self._tail:
            reason, detail = "memory", "the JavaScript heap is full"
        elif code < 0:
            reason, detail = "killed", signal.Signals(-code).name + self._last_words()
        else:
            reason = "failed"
            detail = f"exited with code {code} before its tests were done" + self._last_words()
        return {"passed": self._passed, "reason": reason, "detail": detail}

    def _hear(self) -> bool:
        """One message on the channel. The only way to a pass is: end announced, nonce repeated.

        The first says that the harness hands over to the program. It comes before the program's
        first line, so that no program can pass its own failure off as the sandbox's.
        """
        try:
            message = self._channel.recv(4096)
        except ConnectionResetError:
            message = b""
        if not message:
            return False
        if message == harness.STARTED and not self._started:
            self._started = True
        elif self._nonce and message == self._nonce:
            self._passed = True
        elif message == harness.FINISHED and self._started and not self._nonce:
            self._nonce = secrets.token_hex(16).encode()
            with contextlib.suppress(OSError):
                self._channel.send(self._nonce)
        else:
            reason, _, detail = message.decode(errors="replace").partition("\n")
            if reason not in ("failed", "memory"):
                reason, detail = "failed", "spoke out of turn to the harness"
            self._verdict = (reason, detail)
        return True

    def _last_words(self) -> str:
        lines = self._tail.decode(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return f": {words[-1][-_LAST_WORDS:]}" if words else ""

    def _drain(self) -> bool:
        block = os.read(self._output, 1 << 16)
        self._printed += len(block)
        self._tail = (self._tail + block)[-4096:]
        if self._printed > self._limits["output"]:
            self._verdict = ("killed", f"printed more than {self._limits['output']} bytes")
        return bool(block)


def _kill_and_reap(pid: int, *, alone: bool) -> tuple[int, float]:
    """End the program and whatever it started; its exit code and CPU seconds.

    In a PID namespace of our own everything but ourselves is the program's. Elsewhere it cannot
    have started anything, unless nothing protects, and then its session is all that we know of.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if not alone:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    if alone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _empty(folder: str) -> None:
    """Delete what a program left: it may have written beside its own folder, too."""
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            _remove(entry.path)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _remove(folder: str) -> None:
    """Delete a folder as far as possible; a program may have dug too deep or locked it."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)


def _usage(folder: str) -> int:
    """Bytes under a folder; more than any limit if it holds too many files, or too deep, to count.

    Watching is second best: where a tmpfs of a fixed size can be mounted, none of this is needed.
    """
    total = count = 0
    with contextlib.suppress(RecursionError):
        for parent, folders, files in os.walk(folder):
            count += len(folders) + len(files)
            if count > _MANY_FILES:
                break
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(parent, name)).st_blocks * 512
        else:
            return total
    return 1 << 62
