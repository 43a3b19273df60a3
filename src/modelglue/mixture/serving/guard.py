"""What stands before an answer: keys, the size of bodies, clients that leave."""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from modelglue.mixture.serving.refusals import Refusal

# After a body was refused: how long, and how much of it, a client may go on sending. One that is
# cut off while it sends may never read why.
_LINGER_SECONDS, _LINGER_BYTES = 1.0, 1 << 20


_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_EVERYBODY = ("0.0.0.0", "::", "")


class ClientGone(Exception):
    """The client has closed the connection."""


def require_allowed(scope: Scope, *, key: str | None, host: str) -> None:
    """Refuse a request without the key; where there is none, what a foreign web page asks.

    A page in a browser on this machine reaches servers that listen for this machine alone, under
    its own name (Origin), or under one that it has pointed here (Host).

    Args:
        host: what the server listens on.

    Raises:
        Refusal: 401 or 403.
    """
    if key is not None:
        _require_key(scope, key)
        return
    names = {*_LOOPBACK, host, f"[{host}]"}
    asked = _header(scope, b"host").decode("latin-1")
    origin = _header(scope, b"origin").decode("latin-1")
    known = host in _EVERYBODY or _without_port(asked) in names
    if not known or (origin and _without_port(origin.partition("://")[2]) not in names):
        raise Refusal(
            403,
            "without a key this server answers no web pages of other hosts, and to no names but "
            "localhost and its --host; set a key with --api-key-env",
            code="foreign_request",
        )


def _without_port(netloc: str) -> str:
    return re.sub(r":\d*$", "", netloc).lower()


def _require_key(scope: Scope, key: str) -> None:
    """Which part of a key is wrong takes no time to tell."""
    given = _header(scope, b"authorization")
    scheme, _, token = given.partition(b" ")
    same = hmac.compare_digest(_digest(token.strip()), _digest(key.encode()))
    if not (same and scheme.lower() == b"bearer"):
        raise Refusal(
            401,
            "no valid API key; give it as `Authorization: Bearer KEY`",
            code="invalid_api_key",
        )


async def read_body(
    scope: Scope,
    receive: Receive,
    *,
    most: int,
    seconds: float,
    take: Callable[[int], None] = lambda _size: None,
) -> bytes:
    """A request's body.

    Args:
        take: told of the size of each part before it is kept; may refuse it.

    Raises:
        Refusal: 413 if it is larger than `most` bytes, of which no more are read; 408 if it has
            not come in time.
        ClientGone: it never came.
    """
    told = _header(scope, b"content-length")
    if told.isdigit() and int(told) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                if len(body) + len(part) > most:
                    raise _too_large(most)
                take(len(part))
                body += part
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refusal(
            408, f"the request has not come in {seconds:g} s", code="request_timeout"
        ) from None


async def linger(receive: Receive) -> None:
    """Let a client whose body was refused read why before the connection is closed."""
    left = _LINGER_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, None], *, ended: Callable[[], bool]
) -> None:
    """Do something for a client, and stop if it leaves.

    Args:
        ended: whether the answer has been sent: then a closed connection means nothing.

    Raises:
        ClientGone: it left.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done() and not ended():
            raise ClientGone
        await doing
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


class Sender:
    """What is sent to a client, and how far that has come.

    Attributes:
        before_end: called before the last of a body goes out: a client that has it may ask again.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.ended = False
        self.before_end: Callable[[], None] = lambda: None

    async def start(self, status: int, headers: dict[str, str]) -> None:
        """Send the status and headers."""
        self.started = True
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def body(self, data: bytes, *, more: bool = False) -> None:
        """Send some of the body; the last of it unless there is more."""
        if not more:
            self.before_end()
        message: Message = {"type": "http.response.body", "body": data, "more_body": more}
        await self._send(message)
        self.ended = not more


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the request is larger than {most} bytes", code="request_too_large")
