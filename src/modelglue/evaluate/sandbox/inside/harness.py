"""The fork's side: confine itself, run one program, say how it ended.

Nothing is ever read back from here but the messages on the channel, and a pass needs a nonce that
the worker makes up only after the end was announced.
"""

import os
import random
import signal
import socket
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, NoReturn

from . import confine

STARTED, FINISHED = b"started", b"finished"
_CHANNEL = 3
_DETAIL = 400
_NODE_HARNESS = (Path(__file__).parent / "harness.js").read_text(encoding="utf-8")


def prepare() -> None:
    """Import what most programs import, once instead of once a fork."""
    import collections
    import copy
    import functools
    import heapq
    import itertools
    import json
    import math
    import re
    import string
    import traceback
    import typing

    del collections, copy, functools, heapq, itertools, json, math, re, string, traceback, typing


def child(
    program: dict[str, str],
    settings: dict[str, Any],
    home: str,
    channel: socket.socket,
    output: int,
) -> NoReturn:
    """Run a program in this fork; never returns."""
    try:
        os.setsid()
        channel = _keep_only(channel, output)
        _forget_the_caller(home)
        confine.confine(settings, home, program["language"])
        if program["language"] == "javascript":
            _become_node(program["source"], settings, home)
        _run_python(program["source"], channel)
    except BaseException as error:  # noqa: BLE001 - whatever went wrong, this fork must end here
        _tell(channel, b"failed", repr(error))
    finally:
        os._exit(1)


def _run_python(source: str, channel: socket.socket) -> None:
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    random.seed(0)
    channel.send(STARTED)
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), main.__dict__)
    except MemoryError:
        _tell(channel, b"memory", "MemoryError")
    except BaseException as error:  # noqa: BLE001 - SystemExit, too, left tests undone
        _tell(channel, b"failed", _describe(error))
    else:
        channel.send(FINISHED)
        channel.send(channel.recv(64))


def _describe(error: BaseException) -> str:
    """The error in one line, with the program's line that it came from."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "program.py":
            line = step.tb_lineno
        step = step.tb_next
    what = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return f"{what} (line {line})" if line else what


def _tell(channel: socket.socket, reason: bytes, detail: str) -> None:
    channel.send(reason + b"\n" + detail.encode(errors="replace")[:_DETAIL])


def _keep_only(channel: socket.socket, output: int) -> socket.socket:
    """Close every file but an empty input, the output and the channel."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    kept = [os.dup(fd) for fd in (nothing, output, output, channel.fileno())]
    # First out of the way, then into place: source and target numbers may overlap.
    high = [os.dup2(fd, 100 + place) for place, fd in enumerate(kept)]
    for place, fd in enumerate(high):
        os.dup2(fd, place, inheritable=True)
    channel.detach()
    os.closerange(len(kept), 4096)
    return socket.socket(fileno=_CHANNEL)


def _forget_the_caller(home: str) -> None:
    os.environ.clear()
    os.environ.update(HOME=home, TMPDIR=home, PATH="/usr/bin:/bin", LANG="C.UTF-8")
    tempfile.tempdir = None  # it remembers the worker's
    os.chdir(home)
    os.umask(0o077)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)


def _become_node(source: str, settings: dict[str, Any], home: str) -> NoReturn:
    script = os.path.join(home, "program.js")
    with open(script, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(source)
    heap = settings["limits"]["memory"] >> 20
    node = settings["node"]
    os.environ["OPENSSL_CONF"] = os.devnull  # node ends if it may not read the system's
    os.execv(node, [node, f"--max-old-space-size={heap}", "-e", _NODE_HARNESS, script])
