"""Messages between the two sides of the wall: a length of four bytes, then JSON."""

import json
import os
import struct
from typing import Any

NOT_STARTED = "not started"
"""The reason of an outcome in which the program had no part: the sandbox failed before it."""


def send(fd: int, message: Any) -> None:
    """Write one message."""
    body = json.dumps(message).encode()
    rest = memoryview(struct.pack(">I", len(body)) + body)
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive(fd: int) -> Any:
    """Read exactly one message and not a byte more; None if there is no whole one."""
    head = _exactly(fd, 4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    body = _exactly(fd, size)
    return json.loads(body) if len(body) == size else None


def _exactly(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
