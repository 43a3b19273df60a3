"""An expert that other servers answer for, over OpenAI's interface.

A request goes to one replica. If that fails before the first text has come, another is asked and
the client never knows; after it, the client is told that its answer broke off: what it has read
cannot be taken back, and another replica would write another answer.

A replica that answers with an error may be out of order, or the request may be one that no server
can answer. It is held against the replica only if another one answers the same request.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import httpx

from modelglue.mixture.serving.backend import Trace
from modelglue.mixture.serving.events import BadEvent, read_events
from modelglue.mixture.serving.refusals import Refusal
from modelglue.mixture.serving.replicas import Replica, Replicas
from modelglue.mixture.serving.requests import KNOWN, LENGTHS, Request
from modelglue.mixture.serving.settings import COMPLETION_TOKENS, Timeouts
from modelglue.mixture.serving.upstream_config import Upstream

_PATHS = {"chat": "/chat/completions", "completion": "/completions"}
_MOST_ERROR = 64 << 10
_MOST_ERRORS = 3  # that replicas answer a request with, before it is taken for the request's own

Failed = Callable[[str], None]
"""Told of the address of a replica that gave no answer."""


class _Broken(Exception):
    """A replica gave no answer, or half of one; another may do better.

    Args:
        refused: it took no connection.
        answered: it is alive, and what it said is an error.
        busy: it is alive, and told us to come later; what a client is told if all are.
    """

    def __init__(
        self,
        why: str,
        *,
        refused: bool = False,
        answered: bool = False,
        busy: Refusal | None = None,
    ) -> None:
        super().__init__(why)
        self.refused = refused
        self.answered = answered
        self.busy = busy


@dataclass
class _Tried:
    """The replicas that gave no answer to a request, those that answered with an error apart."""

    replicas: list[Replica] = field(default_factory=list)
    with_error: list[Replica] = field(default_factory=list)
    last: _Broken | None = None


class UpstreamExpert:
    """A `Backend` over the replicas of an expert.

    Args:
        longest: tokens of an answer for which the client asks no length.
    """

    def __init__(
        self,
        upstream: Upstream,
        replicas: Replicas,
        client: httpx.AsyncClient,
        timeouts: Timeouts,
        *,
        longest: int,
        failed: Failed,
    ) -> None:
        self.forwards = True
        self._upstream = upstream
        self._replicas = replicas
        self._client = client
        self._timeouts = timeouts
        self._longest = longest
        self._note_failed = failed
        self._headers = {"accept-encoding": "identity"}
        if upstream.key is not None:
            self._headers["authorization"] = f"Bearer {upstream.key}"

    def state(self) -> dict[str, Any]:
        """See `Backend.state`."""
        live = self._replicas.live
        return {"live": live > 0, "replicas": len(self._replicas.all), "live_replicas": live}

    async def complete(self, request: Request, trace: Trace) -> dict[str, Any]:
        """See `Backend.complete`."""
        tried = _Tried()
        while True:
            replica = await self._next(tried, trace)
            asked = time.monotonic()
            try:
                reply = await self._ask(replica, request)
            except _Broken as error:
                self._failed(replica, error, tried)
            except asyncio.CancelledError:
                if self._is_to_blame(asked, trace):
                    self._failed(replica, _Broken("time-out"), tried)
                raise
            else:
                self._succeeded(replica, tried)
                _note_usage(reply, trace)
                return reply
            finally:
                self._replicas.release(replica)

    def _is_to_blame(self, asked: float, trace: Trace) -> bool:
        """Whether a replica that said nothing since `asked` has failed.

        A client may leave at any time, and most of its time may have gone by in a queue.
        """
        now, times = time.monotonic(), self._timeouts
        late = now - trace.started >= times.total
        return late and now - asked >= min(times.first_byte, times.total)

    async def stream(self, request: Request, trace: Trace) -> AsyncGenerator[dict[str, Any], None]:
        """See `Backend.stream`."""
        tried = _Tried()
        while True:
            replica = await self._next(tried, trace)
            held: list[dict[str, Any]] | None = []  # until the first text; then None
            try:
                async with aclosing(self._chunks(replica, request)) as chunks:
                    async for chunk in chunks:
                        _note_usage(chunk, trace)
                        if held is not None:
                            held.append(chunk)
                            if not _says_something(chunk):
                                continue
                            for kept in held:
                                yield kept
                            held = None
                        else:
                            yield chunk
                if held is not None:
                    raise _Broken("the stream ended before any text", answered=True)
                self._succeeded(replica, tried)
                return
            except _Broken as error:
                self._failed(replica, error, tried)
                if held is None:
                    raise Refusal(
                        502,
                        f"the server of expert {self._upstream.name!r} broke off: {error}",
                        code="upstream_interrupted",
                    ) from error
            finally:
                self._replicas.release(replica)

    async def _next(self, tried: _Tried, trace: Trace) -> Replica:
        """The replica to ask; what the last one did wrong, where none is left."""
        if len(tried.with_error) >= _MOST_ERRORS:
            raise self._no_answer(tried)
        try:
            replica = await self._replicas.lease(without=tried.replicas)
        except Refusal as refusal:
            if tried.last is None or refusal.status != 503:
                raise
            raise self._no_answer(tried) from tried.last
        trace.replica, trace.retries = replica.url, len(tried.replicas)
        return replica

    def _no_answer(self, tried: _Tried) -> Refusal:
        if tried.last is not None and tried.last.busy is not None:
            return tried.last.busy
        return Refusal(
            502,
            f"no server of expert {self._upstream.name!r} answered; the last one: {tried.last}",
            code="upstream_failed",
        )

    def _succeeded(self, replica: Replica, tried: _Tried) -> None:
        self._replicas.succeeded(replica)
        for other in tried.with_error:  # the request could be answered
            self._replicas.failed(other, refused=False)

    def _failed(self, replica: Replica, error: _Broken, tried: _Tried) -> None:
        tried.replicas.append(replica)
        tried.last = error
        if error.busy is not None:
            return
        self._note_failed(replica.url)
        if error.answered:
            tried.with_error.append(replica)
        else:
            self._replicas.failed(replica, refused=error.refused)

    def _body(self, request: Request) -> dict[str, Any]:
        """What a replica is asked: OpenAI's fields, and others that it is said to understand."""
        understood = KNOWN[request.kind] | self._upstream.fields
        body = {
            name: value
            for name, value in request.body.items()
            if name in understood and value is not None
        }
        length = request.max_tokens
        if length is None:
            usual = COMPLETION_TOKENS if request.kind == "completion" else self._longest
            length = min(usual, self._longest)
        names = [name for name in LENGTHS[request.kind] if name in body] or ["max_tokens"]
        return {**body, "model": self._upstream.model, **dict.fromkeys(names, length)}

    def _request(self, replica: Replica, request: Request) -> httpx.Request:
        # What streams has a time between any two parts; what does not comes in one at the end.
        whole = self._timeouts.whole or self._timeouts.total
        silence = self._timeouts.first_byte if request.stream else whole
        return self._client.build_request(
            "POST",
            replica.url + _PATHS[request.kind],
            json=self._body(request),
            headers=self._headers,
            timeout=httpx.Timeout(silence, connect=self._timeouts.connect),
        )

    async def _ask(self, replica: Replica, request: Request) -> dict[str, Any]:
        try:
            response = await self._client.send(self._request(replica, request), stream=True)
            try:
                await self._require_answer(response)
                content = await response.aread()
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise _broken(error) from error
        with suppress(ValueError, RecursionError):
            reply = json.loads(content)
            if isinstance(reply, dict) and isinstance(reply.get("choices"), list):
                return reply
        raise _Broken("its answer is none of OpenAI's objects", answered=True)

    async def _chunks(
        self, replica: Replica, request: Request
    ) -> AsyncGenerator[dict[str, Any], None]:
        finished = False
        try:
            response = await self._client.send(self._request(replica, request), stream=True)
            try:
                await self._require_answer(response)
                if "text/event-stream" not in response.headers.get("content-type", ""):
                    raise _Broken("it was asked for a stream and gave none", answered=True)
                async for event in read_events(response.aiter_bytes()):
                    if event is None:
                        return
                    if error := event.get("error"):
                        raise _Broken(_message(error), answered=True)
                    finished = finished or _finishes(event)
                    yield event
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            # Of an answer that is whole the end of the connection takes nothing away but counts.
            if not finished or request.include_usage:
                raise _broken(error) from error
        except BadEvent as error:
            raise _Broken(str(error), answered=True) from error
        # Some servers close without [DONE]; what has a reason for its end is whole.
        if not finished:
            raise _Broken("the connection closed amid the answer")

    async def _require_answer(self, response: httpx.Response) -> None:
        """Raise unless an answer begins."""
        status = response.status_code
        if status == 200:
            return
        content = b""
        async for part in response.aiter_bytes():
            content += part
            if len(content) > _MOST_ERROR:
                break
        message = _message(_decoded(content)) or f"status {status}"
        if status == 429:
            wait = response.headers.get("retry-after", "")
            busy = Refusal(
                429,
                f"the servers of expert {self._upstream.name!r} are busy: {message}",
                code="upstream_busy",
                kind="rate_limit_error",
                retry_after=int(wait) if wait.isdecimal() else 1,
            )
            raise _Broken(message, busy=busy)
        if status >= 500:
            raise _Broken(f"status {status}: {message}", answered=True)
        self._refuse(status, message)

    def _refuse(self, status: int, message: str) -> NoReturn:
        name = self._upstream.name
        # The client's own key and model were right; it is the gateway that is set up wrongly.
        if status in (401, 403, 404, 405) or status < 400:
            raise Refusal(
                502,
                f"the server of expert {name!r} does not take what this gateway asks "
                f"(status {status}); see the gateway's upstreams",
                code="upstream_refused",
            )
        raise Refusal(status, f"expert {name!r}: {message}", code="upstream_refused")


def _broken(error: httpx.HTTPError) -> _Broken:
    """What went wrong by its kind alone: the error's own words may hold what was sent, keys too.

    Raises:
        Refusal: the gateway itself could not write the request; no replica is at fault.
    """
    if isinstance(error, httpx.LocalProtocolError):
        raise Refusal(500, "the gateway cannot send this request", code="server_error") from None
    refused = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    what = "time-out" if isinstance(error, httpx.TimeoutException) else type(error).__name__
    return _Broken(what, refused=refused)


def _decoded(content: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(content)
    return None


def _message(value: Any) -> str:
    """What an error object says, in any of the shapes that servers use."""
    if isinstance(value, dict):
        for name in ("message", "error", "detail"):
            if name in value:
                return _message(value[name])
    return str(value)[:500] if value else ""


def _choices(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []


def _finishes(chunk: dict[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in _choices(chunk))


def _says_something(chunk: dict[str, Any]) -> bool:
    """Whether a chunk holds more than whose turn it is."""
    for choice in _choices(chunk):
        delta = choice.get("delta")
        said = {k: v for k, v in delta.items() if k != "role"} if isinstance(delta, dict) else {}
        if choice.get("text") or any(said.values()) or choice.get("finish_reason"):
            return True
    return False


def _note_usage(reply: dict[str, Any], trace: Trace) -> None:
    if isinstance(usage := reply.get("usage"), dict):
        for name in ("prompt_tokens", "completion_tokens"):
            if isinstance(count := usage.get(name), int):
                setattr(trace, name, count)
