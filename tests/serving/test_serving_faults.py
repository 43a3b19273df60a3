"""Whose fault it is when an upstream gives no answer, and what it is told and tells."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from modelglue.mixture.serving.backend import Trace
from modelglue.mixture.serving.refusals import Refusal
from modelglue.mixture.serving.replicas import Replicas
from modelglue.mixture.serving.requests import parse
from modelglue.mixture.serving.settings import Limits, Timeouts
from modelglue.mixture.serving.upstream_config import Upstream
from modelglue.mixture.serving.upstreams import UpstreamExpert

ANSWER = {"choices": [{"index": 0, "text": "yes", "finish_reason": "stop"}]}
Handler = Callable[[httpx.Request], Any]


def expert(
    handler: Handler,
    *,
    urls: str = "http://a/v1 http://b/v1",
    timeouts: Timeouts | None = None,
) -> tuple[Replicas, UpstreamExpert]:
    """Two replicas of an expert, unless other addresses are given."""
    group = Replicas(
        "maths",
        urls.split(),
        concurrent=4,
        queue=4,
        failures=2,
        probe_seconds=5,
        watch=lambda _url, _live: None,
    )
    client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    upstream = Upstream("maths", tuple(urls.split()), "maths")
    return group, UpstreamExpert(
        upstream, group, client, timeouts or Timeouts(), longest=64, failed=lambda _url: None
    )


def ask(asked: UpstreamExpert, kind: Any = "completion", **fields: Any) -> Any:
    """The whole answer, or its chunks."""
    text = {"messages": [{"role": "user", "content": "a"}]} if kind == "chat" else {"prompt": "a"}
    request = parse(kind, {"model": "maths", **text, **fields}, Limits())

    async def run() -> Any:
        trace = Trace(kind, "x")
        if request.stream:
            return [chunk async for chunk in asked.stream(request, trace)]
        return await asked.complete(request, trace)

    return asyncio.run(run())


def test_a_request_that_no_replica_can_answer_is_held_against_none() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        bad = "top_p" in json.loads(request.content)
        return (
            httpx.Response(500, json={"error": "no"}) if bad else httpx.Response(200, json=ANSWER)
        )

    for urls in ("http://a/v1", "http://a/v1 http://b/v1"):
        group, asked = expert(handler, urls=urls)
        for _ in range(4):
            with pytest.raises(Refusal) as caught:
                ask(asked, top_p=0.5)
            assert caught.value.status == 502
        assert group.live == len(group.all)
        assert ask(asked) == ANSWER


def test_a_replica_with_errors_where_another_answers_is_out_of_order() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500) if request.url.host == "a" else httpx.Response(200, json=ANSWER)

    group, asked = expert(handler)
    for _ in range(3):
        assert ask(asked) == ANSWER
    assert [replica.live for replica in group.all] == [False, True]


def test_errors_are_not_collected_from_every_replica() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.host)
        return httpx.Response(500)

    _, asked = expert(handler, urls=" ".join(f"http://{name}/v1" for name in "abcdef"))
    with pytest.raises(Refusal):
        ask(asked)
    assert seen == ["a", "b", "c"]


@pytest.mark.parametrize("kind", [httpx.LocalProtocolError, httpx.RemoteProtocolError])
def test_what_goes_wrong_with_a_request_is_not_told_in_words_that_may_hold_its_key(
    kind: type[httpx.HTTPError],
) -> None:
    def handler(_request: httpx.Request) -> httpx.Response:
        raise kind("Illegal header value b'Bearer sesame\\n'")

    group, asked = expert(handler)
    with pytest.raises(Refusal) as caught:
        ask(asked)
    assert "sesame" not in caught.value.message
    if kind is httpx.LocalProtocolError:  # the gateway's own fault
        assert caught.value.status == 500
        assert not any(replica.failures for replica in group.all)


@pytest.mark.parametrize(
    ("kind", "given", "sent"),
    [
        ("chat", {}, {"max_tokens": 64}),
        ("completion", {}, {"max_tokens": 16}),
        ("chat", {"max_completion_tokens": 3}, {"max_completion_tokens": 3}),
        (
            "chat",
            {"max_completion_tokens": 3, "max_tokens": 9},
            {"max_completion_tokens": 3, "max_tokens": 3},
        ),
    ],
)
def test_an_upstream_is_told_the_length_that_was_checked(
    kind: str, given: dict[str, int], sent: dict[str, int]
) -> None:
    bodies: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json=ANSWER)

    ask(expert(handler)[1], kind, **given)
    lengths = {name: value for name, value in bodies[0].items() if name.startswith("max_")}
    assert lengths == sent


@pytest.mark.parametrize("usage", [True, False])
def test_a_connection_that_breaks_after_the_end_of_an_answer_takes_nothing_away(
    usage: bool,
) -> None:
    class Breaks(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield f"data: {json.dumps(ANSWER)}\n\n".encode()
            raise httpx.ReadError("")

    def handler(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Breaks(), headers={"content-type": "text/event-stream"})

    asked = expert(handler)[1]
    if usage:  # it was asked for too, and has not come
        with pytest.raises(Refusal, match="broke off"):
            ask(asked, stream=True, stream_options={"include_usage": True})
    else:
        assert ask(asked, stream=True) == [ANSWER]


def test_a_replica_that_is_silent_to_the_end_of_the_time_has_failed() -> None:
    async def silent(_request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(10)
        raise AssertionError

    async def run(asked: UpstreamExpert, *, total: float) -> None:
        request = parse("completion", {"model": "maths", "prompt": "a"}, Limits())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(total):
                await asked.complete(request, Trace("completion", "x"))

    for total, failures in ((0.01, 0), (0.2, 1)):
        group, asked = expert(silent, timeouts=Timeouts(total=0.1))
        asyncio.run(run(asked, total=total))
        assert sum(replica.failures for replica in group.all) == failures


def test_a_replica_is_not_to_blame_for_the_time_that_a_request_waited() -> None:
    async def silent(_request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(10)
        raise AssertionError

    async def run(asked: UpstreamExpert, *, worked: float) -> None:
        request = parse("completion", {"model": "maths", "prompt": "a"}, Limits())
        trace = Trace("completion", "x", started=time.monotonic() - 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(worked):
                await asked.complete(request, trace)

    for worked, failures in ((0.01, 0), (0.15, 1)):
        group, asked = expert(silent, timeouts=Timeouts(total=1, first_byte=0.1))
        asyncio.run(run(asked, worked=worked))
        assert sum(replica.failures for replica in group.all) == failures


@pytest.mark.parametrize("role", [True, False])
def test_a_stream_that_says_nothing_is_no_answer(role: bool) -> None:
    first = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    events = f"data: {json.dumps(first)}\n\n" * role + "data: [DONE]\n\n"

    def handler(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=events, headers={"content-type": "text/event-stream"})

    with pytest.raises(Refusal, match="before any text") as caught:
        ask(expert(handler)[1], "chat", stream=True)
    assert caught.value.status == 502
