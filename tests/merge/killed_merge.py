"""Merges in children that are killed (or interrupted, as by Ctrl-C) at a moment on the way.

What was written is carried to the disk after every byte, and a child whose note of finished tensors
lags behind waits for it, so that what it leaves depends on the moment alone.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelglue.checkpoint import durable, staging
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.merge import chunk
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.reading import TensorReader
from modelglue.merge.engine.stream import execute
from modelglue.merge.plan.merge_plan import make_plan

CHUNK = 4000
LAG = 3


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(call: Callable[..., Any], number: int, act: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, with `act` before its `number`th time."""
    lock, count = threading.Lock(), 0

    def wrapped(*given: Any, **named: Any) -> Any:
        nonlocal count
        with lock:
            count += 1
            if count == number:
                act(*given, **named)
        return call(*given, **named)

    return wrapped


def tear(*_: Any, **__: Any) -> None:
    """Let half of what is written next get to the file, and no more."""
    write = os.pwrite

    def half(descriptor: int, view: memoryview, offset: int) -> None:
        write(descriptor, view[: len(view) // 2], offset)
        die()

    os.pwrite = half


def lagging(call: Callable[..., None]) -> Callable[..., None]:
    """`write_bytes` that waits until all but a few finished tensors are noted."""

    def write(writer: CheckpointWriter, *given: Any, **named: Any) -> None:
        call(writer, *given, **named)
        note = writer._durable
        until = time.monotonic() + 20
        while note is not None and len(note._pending) > LAG and time.monotonic() < until:
            time.sleep(0.001)

    return write


def arm(moment: str) -> None:
    """Prepare the end.

    Args:
        moment: "write:N", "torn:N" (half of the bytes of write N are there), "read:N", "ctrl-c:N"
            (a write), "commit" (all bytes are there, no file beside them), "rename" (it is whole,
            without its name) or "renamed".
    """
    what, _, number = moment.partition(":")
    write = lagging(CheckpointWriter.write_bytes)
    match what:
        case "write":
            write = counted(write, int(number), lambda *_, **__: die())
        case "torn":
            write = counted(write, int(number), tear)
        case "ctrl-c":
            stop = signal.SIGINT
            write = counted(write, int(number), lambda *_, **__: os.kill(os.getpid(), stop))
        case "read":
            TensorReader.read = counted(TensorReader.read, int(number), lambda *_, **__: die())
        case "commit":
            CheckpointWriter._beside = lambda *_: die()
        case "rename":
            staging.Staging.rename = lambda *_: die()
        case "renamed":
            staging.sync_folder = lambda *_: die()
        case _:
            raise ValueError(moment)
    CheckpointWriter.write_bytes = write


def merge(moment: str, config: dict[str, Any], out: str) -> None:
    plan = make_plan(parse_config(config))
    arm(moment)
    execute(plan, Path(out), threads=2)


def run(moment: str, config: dict[str, Any], out: str) -> str | None:
    """Merge in a child; what was wrong with its end, or None."""
    child = os.fork()
    if child == 0:
        try:
            merge(moment, config, out)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if moment.startswith("ctrl-c"):
        ended = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 130
    else:
        ended = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return None if ended else f"{moment}: {out}: ended by itself ({status})"


if __name__ == "__main__":
    chunk.CHUNK = CHUNK
    jobs = json.loads(Path(sys.argv[1]).read_text())
    for config in {asked["merge_method"]: asked for _, asked, _ in jobs}.values():
        with tempfile.TemporaryDirectory() as folder:  # loads what every child needs, once
            execute(make_plan(parse_config(config)), Path(folder, "out"))
    durable.SYNC_BYTES = 1
    problems = [run(*job) for job in jobs]
    sys.exit("\n".join(filter(None, problems)) or None)
