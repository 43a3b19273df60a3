"""Server-sent events, read from an upstream."""

import json
from collections.abc import AsyncIterator
from typing import Any

_MOST = 16 << 20


class BadEvent(ValueError):
    """What came is no stream of JSON objects."""


async def read_events(parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any] | None]:
    """The JSON object of each event; None for `[DONE]`.

    Lines end with \\n, \\r\\n or \\r and nothing else: Unicode's line separators may stand in JSON.

    Raises:
        BadEvent: an event holds something else, or has no end.
    """
    data: list[bytes] = []
    async for line in _lines(parts):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield _decoded(b"\n".join(data))
            data = []
    if data:  # some servers leave the last blank line out
        yield _decoded(b"\n".join(data))


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    held = b""
    async for part in parts:
        held += part
        # A \r at the end may be half of \r\n.
        whole = held[:-1] if held.endswith(b"\r") else held
        lines = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        held = lines.pop() + held[len(whole) :]
        for line in lines:
            yield line
        if len(held) > _MOST:
            raise BadEvent("an event without end")
    if held.strip():
        yield held.rstrip(b"\r")


def _decoded(data: bytes) -> dict[str, Any] | None:
    if data.strip() == b"[DONE]":
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadEvent(f"an event is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadEvent("an event is no JSON object")
    return value
