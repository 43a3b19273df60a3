"""Prompts that three experts are told apart by, and what servers in tests are made of."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from openai import OpenAI

from modelglue.mixture.serving.connections import Connection

_stream = random.Random(0)
ALPHABETS = {
    "numbers": "0123456789",
    "words": "abcdefghijklmnopqrstuvwxyz",
    "signs": "<>#!{}~^@%&*",
}
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'refuser' %}{{ raise_exception('no refusers here') }}{% endif %}"
    "#{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}#assistant: {% endif %}"
)


def drawn(kind: str, count: int) -> list[str]:
    """So many prompts for one of the experts."""

    def word() -> str:
        return "".join(_stream.choices(ALPHABETS[kind], k=_stream.randint(2, 6)))

    return ["Q: " + " ".join(word() for _ in range(_stream.randint(2, 4))) for _ in range(count)]


PROMPTS = {kind: drawn(kind, 20) for kind in ALPHABETS}


# Making a client reads all certificates that the machine trusts, which takes longer than a test.
HTTP = httpx.Client(timeout=30)


@cache
def client(address: str, *, api_key: str = "none", max_retries: int = 0) -> OpenAI:
    """OpenAI's own client, that does not try twice unless told to."""
    return OpenAI(base_url=f"{address}/v1", api_key=api_key, max_retries=max_retries, timeout=120)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """A server in a thread; gives its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listening.close()
        assert not thread.is_alive()


@contextmanager
def process(words: Sequence[object], **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python program that prints its address in its first line; the program, and the address."""
    import modelglue

    source = str(Path(modelglue.__file__).parents[1])
    program = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **environ},
    )
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        assert "http://" in line, line
        yield program, "http://" + line.split("http://")[1].strip().removesuffix("/v1")
    finally:
        program.kill()
        program.wait()
        assert program.stdout is not None
        program.stdout.close()


def until(done: Any, seconds: float = 20.0) -> None:
    """Wait for something that is to come true."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def metric(address: str, name: str, **headers: str) -> float:
    """The sum of a metric over its labels."""
    text = HTTP.get(f"{address}/metrics", headers=headers).text
    lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
