"""Keys, queues, memory, and servers that are told to stop."""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from serving_samples import HTTP, PROMPTS, client, metric, process, running, until

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import InputError, MixtureError, RunError
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.serving import connections, local
from modelglue.mixture.serving.assemble import Settings, assemble
from modelglue.mixture.serving.requests import Request
from modelglue.mixture.serving.run import serve
from modelglue.mixture.serving.settings import Limits, Timeouts
from modelglue.mixture.serving.writing import Piece

LONG: dict[str, Any] = {"model": "words", "prompt": "go on", "max_tokens": 400, "temperature": 0}


@pytest.fixture(scope="module")
def open_gateway(bundle: Bundle) -> Iterator[str]:
    with running(assemble(bundle, Settings())) as address:
        yield address


def test_without_the_right_key_nothing_is_answered(bundle: Bundle) -> None:
    with running(assemble(bundle, Settings(key="sesame"))) as address:
        for key in ("open", "sesam", "sesame2"):
            with pytest.raises(openai.AuthenticationError) as caught:
                client(address, api_key=key).completions.create(model="glued", prompt="a")
            assert caught.value.code == "invalid_api_key"
            assert key not in str(caught.value)
        for path in ("v1/models", "metrics", "v1/models/words"):
            assert HTTP.get(f"{address}/{path}").status_code == 401
        # A balancer that looks after it knows no key.
        assert HTTP.get(f"{address}/health").status_code == 200
        api = client(address, api_key="sesame")
        assert api.completions.create(model="glued", prompt="Q: 1").choices
        assert len(list(api.models.list())) == 4


def test_a_body_is_not_waited_for_before_the_key_is_known(bundle: Bundle) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n{"
    with running(assemble(bundle, Settings(key="sesame"))) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(head)
            assert line.recv(1000).startswith(b"HTTP/1.1 401")
        # A body that was on its way all the same does not keep the client from reading why.
        reply = HTTP.post(f"{address}/v1/completions", content=b" " * 500_000)
        assert reply.status_code == 401


def test_beyond_the_queue_clients_are_told_to_come_back(bundle: Bundle) -> None:
    with running(assemble(bundle, Settings(limits=Limits(queue=2)))) as address:

        async def ask(api: openai.AsyncOpenAI) -> openai.RateLimitError | None:
            try:
                await api.completions.create(**{**LONG, "max_tokens": 100})
            except openai.RateLimitError as error:
                return error
            return None

        async def run() -> list[openai.RateLimitError | None]:
            api = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            async with api:
                return await asyncio.gather(*(ask(api) for _ in range(12)))

        answers = asyncio.run(run())
        refusals = [error for error in answers if error is not None]
        assert 0 < len(refusals) < len(answers)
        for error in refusals:
            assert error.code == "queue_full"
            assert int(error.response.headers["retry-after"]) >= 1
        # OpenAI's client comes back by itself.
        assert client(address, max_retries=5).completions.create(model="words", prompt="a").choices


def test_beyond_all_that_may_be_at_work_clients_are_told_so(bundle: Bundle) -> None:
    with running(assemble(bundle, Settings(limits=Limits(active=1)))) as address:
        answer = client(address).completions.create(stream=True, **LONG)
        next(iter(answer))
        with pytest.raises(openai.RateLimitError):
            client(address).completions.create(model="glued", prompt="a")
        answer.close()
        until(lambda: metric(address, "modelglue_active_requests") == 0)
        assert client(address).completions.create(model="glued", prompt="Q: 1").choices


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"


def test_who_sends_slowly_takes_nobodys_place(bundle: Bundle) -> None:
    limits = Limits(active=1, arriving=2)
    with running(assemble(bundle, Settings(limits=limits))) as address, ExitStack() as stack:
        host, port = address.removeprefix("http://").split(":")

        def begin() -> socket.socket:
            line = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            line.sendall(HEAD)
            return line

        begin()
        assert client(address).completions.create(model="glued", prompt="Q: 1").choices
        begin()
        assert begin().recv(1000).startswith(b"HTTP/1.1 429")


def test_bodies_of_all_requests_are_bounded_together(bundle: Bundle) -> None:
    limits = Limits(body_bytes=2000, bodies_bytes=3000)
    large = {"model": "numbers", "prompt": "a", "max_tokens": 1, "user": "x" * 1500}
    head = HEAD.replace(b"length: 9", b"length: 2000") + b" " * 1900
    with running(assemble(bundle, Settings(limits=limits))) as address:
        host, port = address.removeprefix("http://").split(":")

        def status() -> int:
            return HTTP.post(f"{address}/v1/completions", json=large).status_code

        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(head)
            until(lambda: status() == 429)
            assert client(address).completions.create(model="numbers", prompt="a").choices
        until(lambda: status() == 200)
        assert status() == 200  # what has been answered takes no more room


def test_what_no_expert_needs_of_a_request_is_not_kept_while_it_waits(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Request] = []

    def write(model: Any, request: Request, *, longest: int) -> Iterator[Piece]:
        seen.append(request)
        yield Piece("", 1, 1, "stop")

    monkeypatch.setattr(local, "write", write)
    with running(assemble(bundle, Settings())) as address:
        client(address).completions.create(model="numbers", prompt="a", user="x" * 1000)
    (request,) = seen
    assert (request.prompt, request.body) == ("a", {})


def test_a_connection_that_asks_for_nothing_is_closed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with running(assemble(bundle, Settings())) as address:
        host, port = address.removeprefix("http://").split(":")
        for sent in (b"", HEAD[:20]):
            with socket.create_connection((host, int(port)), timeout=10) as line:
                line.sendall(sent)
                with suppress(ConnectionResetError):
                    assert line.recv(100) == b""
        # An answer may take longer than its question.
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.05)
        assert client(address).completions.create(**LONG).choices


def test_connections_beyond_the_most_are_closed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 1)
    with running(assemble(bundle, Settings())) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(HEAD)  # it is there when the next one comes
            with (
                socket.create_connection((host, int(port)), timeout=10) as other,
                suppress(ConnectionResetError),
            ):
                assert other.recv(100) == b""


def test_a_client_that_stops_reading_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 0.2)
    ended = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b" " * 100_000, "more_body": True})
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    with running(app) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert ended.wait(10)


def test_a_request_that_does_not_come_is_given_up(bundle: Bundle) -> None:
    with running(assemble(bundle, Settings(timeouts=Timeouts(body=0.2)))) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as line:
            line.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"
            )
            assert line.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_second_expert_within_memory_unloads_the_least_recently_used(
    bundle: Bundle, expert_folders: dict[str, Path]
) -> None:
    with Checkpoint.open(expert_folders["words"]) as checkpoint:
        room = int(checkpoint.nbytes * 2.5)
    with running(assemble(bundle, Settings(memory=room))) as address:

        def loaded() -> set[str]:
            experts = HTTP.get(f"{address}/health").json()["experts"]
            return {name for name, state in experts.items() if state["loaded"]}

        api = client(address)
        assert loaded() == set()
        for name, then in (
            ("numbers", {"numbers"}),
            ("words", {"numbers", "words"}),
            ("numbers", {"numbers", "words"}),
            ("signs", {"numbers", "signs"}),
        ):
            prompt = PROMPTS[name][0]
            reply = api.completions.create(
                model="glued", prompt=prompt, temperature=0, max_tokens=4
            )
            assert reply.choices[0].text == bundle.generate([prompt], max_new_tokens=4)[0]
            assert loaded() == then
        assert metric(address, "modelglue_expert_unloads_total") == 1
        assert metric(address, "modelglue_expert_bytes") <= room


def test_an_expert_that_is_being_loaded_changes_no_route(bundle: Bundle) -> None:
    prompts = [prompt for kind in PROMPTS for prompt in PROMPTS[kind]]
    before = bundle.route(prompts)
    torch.set_default_dtype(torch.bfloat16)  # as transformers does, for all threads
    try:
        assert bundle.route(prompts) == before
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:80", "origin": "http://localhost:3000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example:8000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_without_a_key_no_page_of_somebody_else_may_ask(
    open_gateway: str, headers: dict[str, str], status: int
) -> None:
    body = {"model": "numbers", "prompt": "a", "max_tokens": 1}
    reply = HTTP.post(f"{open_gateway}/v1/completions", json=body, headers=headers)
    assert reply.status_code == status
    assert HTTP.get(f"{open_gateway}/v1/models", headers=headers).status_code == status
    assert HTTP.get(f"{open_gateway}/health", headers=headers).status_code == 200


def test_a_server_for_everybody_answers_to_any_name(bundle: Bundle) -> None:
    with running(assemble(bundle, Settings(host="0.0.0.0"))) as address:
        headers = {"host": "models.example"}
        assert HTTP.get(f"{address}/v1/models", headers=headers).status_code == 200


def test_an_expert_larger_than_memory_is_refused_before_any_work(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"cannot hold numbers.*words.*signs.*--memory"):
        assemble(bundle, Settings(memory=1000))


def test_a_bundle_is_called_as_the_path_that_was_given(bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "model"
    link.symlink_to(bundle.path.resolve())
    with running(assemble(Bundle.load(link), Settings())) as address:
        assert HTTP.get(f"{address}/v1/models").json()["data"][0]["id"] == "model"


def test_a_bundle_may_not_be_called_as_its_expert(bundle: Bundle) -> None:
    with pytest.raises(MixtureError, match="--name"):
        assemble(bundle, Settings(name="words"))


def test_a_taken_port_is_told(bundle_path: Path) -> None:
    import socket

    with (
        socket.create_server(("127.0.0.1", 0)) as line,
        pytest.raises(RunError, match="cannot be listened on"),
    ):
        serve(bundle_path, Settings(), port=line.getsockname()[1])


def test_told_to_stop_it_finishes_what_streams_and_takes_nothing_new(
    bundle_path: Path,
) -> None:
    words = ["-m", "modelglue.cli", "serve", bundle_path, "--port", 0, "--name", "other"]
    with process([*words, "--api-key-env", "KEY"], KEY="sesame") as (program, address):
        answer = client(address, api_key="sesame").completions.create(
            stream=True, **{**LONG, "max_tokens": 480}
        )
        parts = iter(answer)
        told = [next(parts)]
        os.kill(program.pid, signal.SIGTERM)

        def refused() -> bool:
            try:
                HTTP.get(f"{address}/health")
            except httpx.TransportError:
                return True
            return False

        until(refused, 5)
        told += list(parts)
        assert told[-1].choices[0].finish_reason in ("length", "stop")
        assert program.wait(timeout=20) == 0


def test_the_log_has_a_line_for_each_request_without_its_text_or_key(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "Q: 12345 secretly"
    with caplog.at_level("INFO", "modelglue.access"):
        with running(assemble(bundle, Settings(key="sesame"))) as address:
            api = client(address, api_key="sesame")
            api.completions.create(model="numbers", prompt=secret, max_tokens=3, user="me")
            with pytest.raises(openai.NotFoundError):
                api.completions.create(model="nobody", prompt=secret)
        first, second = (json.loads(record.message) for record in caplog.records)
        assert (first["status"], first["expert"], first["completion_tokens"]) == (200, "numbers", 3)
        assert (second["status"], second["error"]) == (404, "model_not_found")
        assert "secretly" not in caplog.text
        assert "sesame" not in caplog.text
        with running(assemble(bundle, Settings(log_prompts=True))) as address:
            client(address).completions.create(model="numbers", prompt=secret, max_tokens=3)
        assert "secretly" in caplog.text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--api-key-env", "NOT_SET"], "'NOT_SET' is not set"),
        (["--memory", "0.000001"], "--memory"),
        (["--memory", "inf", "--timeout", "inf"], "--memory, --timeout: must be finite"),
        (["--upstreams", "missing.yaml"], "missing.yaml"),
    ],
)
def test_the_command_says_what_is_wrong(
    bundle_path: Path,
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from modelglue.cli import main

    monkeypatch.setattr(sys, "argv", ["modelglue", "serve", str(bundle_path), *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert told in capsys.readouterr().err


def test_a_server_that_anybody_can_reach_warns_of_it(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from modelglue.cli import main
    from modelglue.mixture.serving import run

    monkeypatch.setattr(run, "serve", lambda *_args, **_options: None)
    for words, warns in (([], False), (["--host", "0.0.0.0"], True)):
        monkeypatch.setattr(sys, "argv", ["modelglue", "serve", str(bundle_path), *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        assert ("--api-key-env" in capsys.readouterr().err) == warns
