"""A real `modelglue serve`, asked by OpenAI's own client, answers as the bundle alone does."""

import asyncio
import json
import socket
import time
from typing import Any

import httpx
import openai
import pytest
from serving_samples import HTTP, PROMPTS, client, drawn, metric, until

from modelglue.mixture.bundle import Bundle

GREEDY: dict[str, Any] = {"model": "glued", "temperature": 0}
TALK: Any = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": PROMPTS["words"][0]},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": PROMPTS["numbers"][0]},
]


def fixed(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_the_bundle_and_its_experts_are_models(served: str) -> None:
    api = client(served)
    assert [model.id for model in api.models.list()] == ["glued", *PROMPTS]
    assert api.models.retrieve("words").id == "words"


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_a_completion_is_routed_and_is_what_the_bundle_generates(
    served: str, bundle: Bundle, kind: str
) -> None:
    prompt = PROMPTS[kind][1]
    raw = client(served).completions.with_raw_response.create(
        prompt=prompt, max_tokens=12, **GREEDY
    )
    reply: Any = raw.parse()
    assert reply.choices[0].text == bundle.generate([prompt], max_new_tokens=12)[0]
    assert raw.headers["x-modelglue-expert"] == kind
    assert (reply.model, reply.system_fingerprint) == ("glued", f"modelglue:{kind}")
    assert reply.usage.prompt_tokens == len(prompt.encode())
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_conversation_is_routed_by_its_opening(served: str, bundle: Bundle) -> None:
    raw = client(served).chat.completions.with_raw_response.create(
        messages=TALK, max_completion_tokens=16, **GREEDY
    )
    reply: Any = raw.parse()
    assert reply.choices[0].message.content == bundle.chat(TALK, max_new_tokens=16)
    assert reply.choices[0].message.role == "assistant"
    assert raw.headers["x-modelglue-expert"] == "words"


def test_an_expert_may_be_asked_by_name(served: str, bundle: Bundle) -> None:
    prompt = PROMPTS["words"][0]
    raw = client(served).completions.with_raw_response.create(
        model="numbers", prompt=prompt, max_tokens=8, temperature=0
    )
    reply: Any = raw.parse()
    alone = bundle.expert(0).generate([prompt], max_new_tokens=8)[0]
    assert (reply.choices[0].text, raw.headers["x-modelglue-expert"]) == (alone, "numbers")


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.9, "seed": 4}])
def test_streaming_equals_not_streaming(served: str, bundle: Bundle, how: dict[str, Any]) -> None:
    api, prompt = client(served), PROMPTS["numbers"][2]
    asked: dict[str, Any] = {"model": "glued", "messages": fixed(prompt), "max_tokens": 24, **how}
    whole = api.chat.completions.create(**asked)
    parts = list(
        api.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    )
    text = "".join(part.choices[0].delta.content or "" for part in parts[:-1])
    assert text == whole.choices[0].message.content
    assert text == bundle.chat(fixed(prompt), max_new_tokens=24, **how)
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert parts[-1].choices == []
    assert parts[-1].usage == whole.usage
    assert {part.id for part in parts} == {parts[0].id}
    assert {part.system_fingerprint for part in parts} == {"modelglue:numbers"}


def test_a_stop_ends_the_answer_and_is_never_seen(served: str, bundle: Bundle) -> None:
    prompt = PROMPTS["numbers"][3]
    whole = bundle.generate([prompt], max_new_tokens=24)[0]
    stop = whole[7:10]
    parts = list(
        client(served).completions.create(
            prompt=prompt, max_tokens=24, stop=[stop], stream=True, **GREEDY
        )
    )
    assert "".join(part.choices[0].text for part in parts) == whole.split(stop)[0]
    assert parts[-1].choices[0].finish_reason == "stop"


def test_a_completion_that_names_no_length_has_sixteen_tokens(served: str) -> None:
    reply = client(served).completions.create(prompt="Q: 1 2", model="numbers", seed=1)
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 16


def test_two_hundred_streams_at_once_lose_and_mix_up_nothing(served: str, bundle: Bundle) -> None:
    prompts = [prompt for kind in PROMPTS for prompt in drawn(kind, 67)][:200]
    alone = bundle.generate(prompts, max_new_tokens=10)
    before = metric(served, "modelglue_requests_total")

    async def ask(api: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await api.completions.create(prompt=prompt, max_tokens=10, stream=True, **GREEDY)
        return "".join([part.choices[0].text async for part in stream])

    async def ask_all() -> list[str]:
        api = openai.AsyncOpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0)
        async with api:
            return await asyncio.gather(*(ask(api, prompt) for prompt in prompts))

    assert asyncio.run(ask_all()) == alone
    assert len(set(alone)) > 150
    until(lambda: metric(served, "modelglue_requests_total") == before + 200)
    assert metric(served, "modelglue_active_requests") == 0


def post(served: str, path: str, data: bytes) -> httpx.Response:
    return HTTP.post(f"{served}/v1/{path}", content=data)


def test_malformed_json_is_refused_in_openais_shape(served: str) -> None:
    for data in (b"{", b"", b"\xff", b"[" * 50_000):
        reply = post(served, "chat/completions", data)
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "invalid_json"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client(served).completions.create(model="glued", prompt="a", temperature=9)


def test_an_unknown_model_is_not_found(served: str) -> None:
    for ask in (
        lambda api: api.completions.create(model="nobody", prompt="a"),
        lambda api: api.models.retrieve("nobody"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(client(served))
        assert caught.value.code == "model_not_found"


def test_other_addresses_and_methods_are_refused_in_openais_shape(served: str) -> None:
    assert HTTP.get(f"{served}/v1/nothing").json()["error"]["code"] == "no_such_address"
    assert HTTP.get(f"{served}/v1/completions").status_code == 405


def test_fifty_megabytes_are_refused_unread(served: str) -> None:
    reply = post(served, "completions", b" " * 50_000_000)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"
    # Nor is a length believed: the same, in pieces that tell none.
    pieces = (b" " * 100_000 for _ in range(500))
    assert HTTP.post(f"{served}/v1/completions", content=pieces).status_code == 413
    # Told by its length, it is refused before a byte of it has come.
    host, port = served.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n"
        )
        assert line.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_prompt_too_long_for_the_expert_is_refused(served: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client(served).completions.create(model="numbers", prompt="1" * 600, stream=stream)
        assert caught.value.code == "context_length_exceeded"


def test_an_expert_without_a_chat_template_says_so(served: str) -> None:
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        client(served).chat.completions.create(model="signs", messages=fixed("<>"))


def test_what_a_template_refuses_is_the_clients_fault(served: str) -> None:
    messages: Any = [{"role": "refuser", "content": "3"}]
    with pytest.raises(openai.BadRequestError, match="no refusers here"):
        client(served).chat.completions.create(model="words", messages=messages)


def test_what_would_change_the_answer_is_refused_in_the_process(served: str) -> None:
    with pytest.raises(openai.BadRequestError, match="frequency_penalty"):
        client(served).completions.create(model="words", prompt="a", frequency_penalty=1.0)


def test_a_client_that_leaves_stops_the_work_and_the_server_lives(served: str) -> None:
    def left() -> float:
        text = HTTP.get(f"{served}/metrics").text
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith("modelglue_requests_total{") and 'status="499"' in line
        )

    before, tokens = left(), metric(served, "modelglue_tokens_total")
    # Greedily this expert goes on and on.
    asked: dict[str, Any] = {"model": "words", "prompt": "go", "max_tokens": 500, "temperature": 0}
    with HTTP.stream(
        "POST", f"{served}/v1/completions", json={**asked, "stream": True}, timeout=30
    ) as reply:
        assert next(reply.iter_bytes()).startswith(b"data: ")
    with pytest.raises(httpx.ReadTimeout):
        HTTP.post(f"{served}/v1/completions", json=asked, timeout=0.1)
    until(lambda: left() == before + 2)
    assert metric(served, "modelglue_active_requests") == 0
    assert metric(served, "modelglue_tokens_total") - tokens < 1000
    assert client(served).completions.create(prompt="Q: 1", model="glued").choices[0].text


def test_health_tells_of_experts(served: str) -> None:
    reply = HTTP.get(f"{served}/health")
    assert reply.status_code == 200
    assert reply.json()["status"] == "ok"
    assert set(reply.json()["experts"]) == set(PROMPTS)


def test_metrics_count_what_was_done(served: str) -> None:
    api = client(served)
    before = {
        name: metric(served, f"modelglue_{name}")
        for name in ("requests_total", "tokens_total", "request_seconds_count")
    }
    reply = api.completions.create(prompt="Q: 1 2 3", model="numbers", max_tokens=5, temperature=0)
    assert reply.usage is not None
    # Counted when the last of it has gone out, which the client may see sooner.
    until(lambda: metric(served, "modelglue_requests_total") == before["requests_total"] + 1)
    assert metric(served, "modelglue_tokens_total") == before["tokens_total"] + (
        reply.usage.total_tokens
    )
    assert metric(served, "modelglue_request_seconds_count") == (
        before["request_seconds_count"] + 1
    )
    assert metric(served, "modelglue_expert_bytes") > 0


def test_a_slow_body_holds_nobody_up(served: str) -> None:
    host, port = served.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{"
        )
        start = time.monotonic()
        assert client(served).completions.create(prompt="Q: 1", model="glued").choices
        assert time.monotonic() - start < 5


def test_events_are_plain_json_lines(served: str) -> None:
    body = {"model": "glued", "prompt": "Q: 12", "stream": True, "temperature": 0}
    reply = HTTP.post(f"{served}/v1/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.content.split(b"\n") if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert lines[-1] == b"data: [DONE]"
    assert all(json.loads(line[6:])["object"] == "text_completion" for line in lines[:-1])
