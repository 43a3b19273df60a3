"""An endpoint that answers: a request is admitted, read, routed, answered, and written down."""

import asyncio
import time
import uuid
from contextlib import ExitStack, aclosing
from dataclasses import replace
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from modelglue.mixture.serving import access
from modelglue.mixture.serving.backend import Backend, Trace
from modelglue.mixture.serving.gateway import Gateway
from modelglue.mixture.serving.guard import (
    ClientGone,
    Sender,
    linger,
    read_body,
    while_connected,
)
from modelglue.mixture.serving.refusals import Refusal
from modelglue.mixture.serving.replies import DONE, encoded, event, stamped
from modelglue.mixture.serving.requests import Kind, Request, parse, read_json

EXPERT_HEADER = "x-modelglue-expert"
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # some proxies would collect the stream
}


class Answers:
    """The endpoint of one kind of request; an ASGI application."""

    def __init__(self, gateway: Gateway, kind: Kind) -> None:
        self._gateway = gateway
        self._kind: Kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or say why not, and write it down either way."""
        sender = Sender(send)
        trace = Trace(endpoint=self._kind, id=uuid.uuid4().hex)
        seconds = self._gateway.timeouts.total
        try:
            async with asyncio.timeout(seconds):
                await self._answer(trace, scope, receive, sender)
        except ClientGone:
            trace.status, trace.error = 499, "client_gone"
        except TimeoutError:
            late = Refusal(504, f"no whole answer in {seconds:g} s", code="timeout")
            await _refuse(late, trace, receive, sender)
        except Refusal as refusal:
            await _refuse(refusal, trace, receive, sender)
        except asyncio.CancelledError:
            # The server may wait no longer; what streams is to end as what broke off does.
            stopping = Refusal(503, "the server is stopping", code="stopping", retry_after=1)
            await _refuse(stopping, trace, receive, sender)
            raise
        except Exception:  # noqa: BLE001  (a request that fails is not to end the server)
            access.note_failure(trace)
            failed = Refusal(500, f"the server failed at request {trace.id}", code="server_error")
            await _refuse(failed, trace, receive, sender)
        finally:
            self._gateway.metrics.note(trace)
            access.note(trace, client=scope.get("client"))

    async def _answer(self, trace: Trace, scope: Scope, receive: Receive, sender: Sender) -> None:
        gateway = self._gateway
        gateway.require_allowed(scope)
        with ExitStack() as held:
            take = held.enter_context(gateway.holding())
            sender.before_end = held.close
            with gateway.arriving():
                most, seconds = gateway.limits.body_bytes, gateway.timeouts.body
                data = await read_body(scope, receive, most=most, seconds=seconds, take=take)
            with gateway.admitted():
                request = parse(self._kind, read_json(data), gateway.limits)
                del data
                trace.model, trace.stream = request.model, request.stream
                chat = self._kind == "chat"
                text = gateway.opening(request.messages) if chat else request.prompt
                if gateway.log_prompts:
                    trace.prompt = text
                work = self._respond(request, text, trace, sender)
                del request  # whoever answers may let go of a part of it
                await while_connected(receive, work, ended=lambda: sender.ended)

    async def _respond(self, request: Request, text: str, trace: Trace, sender: Sender) -> None:
        trace.expert = await self._gateway.expert(request.model, text)
        backend = self._gateway.backends[trace.expert]
        if not backend.forwards:
            request = replace(request, body={})
        if request.stream:
            await _stream(backend, request, trace, sender)
            return
        reply = await backend.complete(request, trace)
        trace.status = 200
        await _send(stamped(reply, model=request.model, expert=trace.expert), trace, sender)


async def _stream(backend: Backend, request: Request, trace: Trace, sender: Sender) -> None:
    async with aclosing(backend.stream(request, trace)) as chunks:
        async for chunk in chunks:
            # With the first chunk an answer has begun: until then a refusal has its own status.
            if not sender.started:
                trace.first, trace.status = time.monotonic(), 200
                await sender.start(200, {**_STREAM_HEADERS, **_headers(trace)})
            told = stamped(chunk, model=request.model, expert=trace.expert)
            await sender.body(event(told), more=True)
    await sender.body(DONE)


async def _send(reply: dict[str, object], trace: Trace, sender: Sender) -> None:
    body = encoded(reply)
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    await sender.start(trace.status, {**headers, **_headers(trace)})
    await sender.body(body)


async def _refuse(refusal: Refusal, trace: Trace, receive: Receive, sender: Sender) -> None:
    """Tell the client that there is no answer, or that it ends here."""
    trace.error = refusal.code or "refused"
    if sender.ended:
        return
    if sender.started:
        # A 200 has gone out, but what watches the server is to see the failure. OpenAI's clients
        # raise at an event with an error.
        trace.status = refusal.status
        await sender.body(event(refusal.body()) + DONE)
        return
    trace.status = refusal.status
    body = encoded(refusal.body())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **_headers(trace),
        **refusal.headers(),
    }
    # Its body may not have been read: what comes next on the connection is no request.
    if refusal.status in (401, 403, 408, 413, 429):
        headers["connection"] = "close"
    await sender.start(refusal.status, headers)
    if refusal.status in (401, 403, 413, 429):
        await sender.body(body, more=True)
        await linger(receive)
        body = b""
    await sender.body(body)


def _headers(trace: Trace) -> dict[str, str]:
    headers = {"x-request-id": trace.id}
    if trace.expert:
        headers[EXPERT_HEADER] = quote(trace.expert, safe=" /:@+,;=!~()[]")
    return headers
