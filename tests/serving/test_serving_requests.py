"""What clients may ask, and what they are told when they may not."""

import json
import time
from typing import Any

import pytest

from modelglue.mixture.serving.refusals import Refusal
from modelglue.mixture.serving.requests import Request, parse, read_json
from modelglue.mixture.serving.settings import Limits

CHAT = {"model": "glued", "messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": "glued", "prompt": "hello"}


def chat(**fields: Any) -> Request:
    return parse("chat", {**CHAT, **fields}, Limits())


def refused(kind: Any, value: Any, limits: Limits | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(kind, value, limits or Limits())
    return caught.value


def test_a_body_full_of_parts_is_read_in_a_moment() -> None:
    for part in ({"text": ""}, 1):
        content = [part] * 200_000 + [2]
        start = time.process_time()
        refused("chat", {"model": "glued", "messages": [{"role": "user", "content": content}]})
        assert time.process_time() - start < 2


def test_what_a_client_leaves_out_is_as_at_openai() -> None:
    request = chat()
    assert (request.temperature, request.top_p, request.max_tokens) == (1.0, 1.0, None)
    assert (request.stream, request.seed, request.stop) == (False, None, ())


def test_unknown_fields_are_ignored_and_null_counts_as_absent() -> None:
    request = chat(flavour="sweet", temperature=None, stop=None, seed=None, n=None, logprobs=None)
    assert request.temperature == 1.0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_longest_answer_are_known(name: str) -> None:
    assert chat(**{name: 7}).max_tokens == 7


def test_content_may_come_in_parts_of_text() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert chat(messages=messages).messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
        ),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"max_completion_tokens": 1, "max_tokens": 10**9}, "max_tokens"),
        ({"stop": 4}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", "b" * 257]}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_a_field_that_cannot_be_is_named(fields: dict[str, Any], param: str) -> None:
    refusal = refused("chat", {**CHAT, **fields})
    assert (refusal.status, refusal.param) == (400, param)
    assert param in refusal.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"logprobs": 0}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True}, "echo"),
    ],
)
def test_completions_have_fields_of_their_own(fields: dict[str, Any], param: str) -> None:
    assert refused("completion", {**COMPLETION, **fields}).param == param


def test_all_that_is_wrong_is_told_at_once() -> None:
    message = refused("chat", {"messages": "hi", "temperature": 9, "n": 4}).message
    assert all(name in message for name in ("model", "messages", "temperature", "n:"))


def test_fields_that_would_change_the_answer_are_noted_unless_they_ask_for_nothing() -> None:
    nothing = {"tools": [], "frequency_penalty": 0, "response_format": {"type": "text"}}
    assert chat(**nothing).unsupported == ()
    assert chat(tools=[{}], presence_penalty=0.5).unsupported == ("presence_penalty", "tools")


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": "3", "tool_call_id": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
    ],
)
def test_turns_that_mean_more_than_their_text_are_noted(turn: dict[str, Any]) -> None:
    user = {"role": "user", "content": "hello"}
    assert chat(messages=[user, turn]).unsupported == ("messages[1]",)


def test_a_prompt_beyond_the_limit_is_refused_as_openai_does() -> None:
    refusal = refused(
        "completion", {**COMPLETION, "prompt": "x" * 11}, Limits(prompt_characters=10)
    )
    assert (refusal.status, refusal.code) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": 1e400}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\\ud83d"}',
    ],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        read_json(data)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_json_that_is_no_object_is_refused() -> None:
    assert refused("chat", [1]).code == "invalid_json"


def test_characters_beyond_the_first_plane_may_be_written_in_halves() -> None:
    assert read_json(b'"\\ud83d\\ude42"') == "🙂"


def test_a_refusal_has_openais_shape() -> None:
    body = json.loads(json.dumps(refused("chat", {**CHAT, "n": 2}).body()))
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
