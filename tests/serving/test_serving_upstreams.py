"""A gateway before other servers, which fail in every way that they can."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from serving_samples import HTTP, PROMPTS, client, metric, process, running, until

from modelglue.mixture.bundle import Bundle
from modelglue.mixture.serving.assemble import Settings, assemble

FAKE = Path(__file__).with_name("fake_upstream.py")
Fake = tuple[Any, str]


@pytest.fixture
def gateway(bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A gateway before servers of `numbers`; the other experts are in the process."""
    with ExitStack() as stack:

        def start(urls: Sequence[str], *, expert: dict[str, Any] | None = None, **more: Any) -> str:
            entry = {"name": "numbers", "urls": list(urls), **(expert or {})}
            others = [{"name": name, "local": True} for name in ("words", "signs")]
            config = {"experts": [entry, *others], **more}
            path = tmp_path / "upstreams.yaml"
            path.write_text(yaml.safe_dump(config))
            return stack.enter_context(running(assemble(bundle, Settings(upstreams=path))))

        yield start


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    with fake("plain") as (_, address):
        yield address


@contextmanager
def fake(*words: str) -> Iterator[Fake]:
    with process([FAKE, *words]) as found:
        yield found


def asked(address: str) -> Any:
    return HTTP.get(f"{address}/asked").json()


def stream(address: str, prompt: str, **more: Any) -> Iterator[str]:
    for part in client(address).completions.create(
        model="numbers", prompt=prompt, stream=True, **more
    ):
        yield part.choices[0].text


def closed_port() -> str:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as line:
        return f"http://127.0.0.1:{line.getsockname()[1]}"


def test_an_upstream_answers_for_its_expert(gateway: Callable[..., str], plain: str) -> None:
    address = gateway([plain], expert={"model": "org/numbers", "fields": ["top_k"]})
    prompt = PROMPTS["numbers"][0]
    word = prompt.split()[-1] + " "
    raw = client(address).chat.completions.with_raw_response.create(
        model="glued",
        messages=[{"role": "user", "content": prompt}],
        extra_body={"top_k": 4, "flavour": "sweet"},
        seed=None,
    )
    reply: Any = raw.parse()
    assert reply.choices[0].message.content == word * 5
    assert raw.headers["x-modelglue-expert"] == "numbers"
    assert (reply.model, reply.system_fingerprint) == ("glued", "modelglue:numbers")
    assert reply.usage.total_tokens == 8
    # OpenAI's fields and those that the file names are passed on, and the upstream's own name.
    body = asked(plain)["asked"][-1]
    assert body["model"] == "org/numbers"
    assert body["top_k"] == 4
    assert "flavour" not in body
    assert "seed" not in body
    assert "".join(stream(address, prompt)) == word * 5
    assert metric(address, "modelglue_tokens_total") == 8


def test_other_experts_are_answered_in_the_process(
    gateway: Callable[..., str], plain: str, bundle: Bundle
) -> None:
    address, prompt = gateway([plain]), PROMPTS["words"][0]
    reply = client(address).completions.create(
        model="glued", prompt=prompt, temperature=0, max_tokens=8
    )
    assert reply.choices[0].text == bundle.generate([prompt], max_new_tokens=8)[0]


def test_keys_of_upstreams_come_from_the_environment(
    gateway: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake("locked", "key=sesame") as (_, upstream):
        monkeypatch.setenv("SESAME", "sesame")
        address = gateway([upstream], expert={"api_key_env": "SESAME"})
        assert "".join(stream(address, "a b")) == "b " * 5
        monkeypatch.setenv("SESAME", "wrong")
        address = gateway([upstream], expert={"api_key_env": "SESAME"})
        # The client's own key was right: this is no 401.
        with pytest.raises(openai.InternalServerError) as caught:
            list(stream(address, "a b"))
        assert caught.value.status_code == 502
        assert "sesame" not in str(caught.value)


def test_what_an_upstream_refuses_is_told_as_it_is(gateway: Callable[..., str], plain: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="that is refused"):
        list(stream(gateway([plain]), "refuse me"))


def test_fields_that_only_upstreams_honour_reach_them(
    gateway: Callable[..., str], plain: str
) -> None:
    list(stream(gateway([plain]), "a b", presence_penalty=0.5))
    assert asked(plain)["asked"][-1]["presence_penalty"] == 0.5


@pytest.mark.parametrize("stream_it", [True, False])
@pytest.mark.parametrize("how", ["closed", "status=500", "status=429"])
def test_another_replica_answers_for_one_that_does_not(
    gateway: Callable[..., str], plain: str, how: str, stream_it: bool
) -> None:
    with ExitStack() as stack:
        bad = closed_port() if how == "closed" else stack.enter_context(fake("bad", how))[1]
        address = gateway([bad, plain], probe={"every": 60})
        api = client(address)
        for i in range(4):
            if stream_it:
                text = "".join(stream(address, f"a {i}"))
            else:
                text = api.completions.create(model="numbers", prompt=f"a {i}").choices[0].text
            assert text == f"{i} " * 5
        assert metric(address, "modelglue_upstream_retries_total") >= 1
        # A dead one is asked no more; a busy one is no dead one.
        assert metric(address, "modelglue_upstream_live") == (2 if how == "status=429" else 1)


def test_busy_upstreams_are_told_with_their_own_patience(gateway: Callable[..., str]) -> None:
    with (
        fake("busy", "status=429") as (_, upstream),
        pytest.raises(openai.RateLimitError) as caught,
    ):
        list(stream(gateway([upstream]), "a"))
    assert caught.value.response.headers["retry-after"] == "7"


def test_without_a_living_replica_the_client_is_told_at_once(gateway: Callable[..., str]) -> None:
    address = gateway([closed_port()], probe={"every": 60})
    for status in (502, 503):
        with pytest.raises(openai.InternalServerError) as caught:
            list(stream(address, "a"))
        assert caught.value.status_code == status
    assert caught.value.response.headers["retry-after"] == "60"
    assert HTTP.get(f"{address}/health").json()["status"] == "degraded"


def test_a_replica_that_comes_back_is_found_by_a_probe(gateway: Callable[..., str]) -> None:
    url = closed_port()
    address = gateway([url], probe={"every": 0.05})
    with pytest.raises(openai.InternalServerError):
        list(stream(address, "a"))
    with fake("late", f"port={url.rsplit(':', 1)[1]}"):
        until(lambda: metric(address, "modelglue_upstream_live") == 1)
        assert "".join(stream(address, "a b")) == "b " * 5


@pytest.mark.parametrize("word", ["broken", "cut"])
def test_an_answer_that_breaks_off_ends_with_an_error(
    gateway: Callable[..., str], plain: str, word: str
) -> None:
    address = gateway([plain, plain.replace("127.0.0.1", "localhost")])
    told: list[str] = []
    with pytest.raises(openai.APIError, match="broke off"):
        told.extend(stream(address, f"{word} x"))
    assert told == ["x "] * 5
    body = {"model": "numbers", "prompt": f"{word} x", "stream": True}
    events = HTTP.post(f"{address}/v1/completions", json=body).text.strip().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "upstream_interrupted"
    assert events[-1] == "data: [DONE]"
    # The status had gone out, but what watches the server is to see it.
    metrics = HTTP.get(f"{address}/metrics").text
    assert 'expert="numbers",status="502"} 2.0' in metrics


def test_a_stream_that_ends_without_done_is_whole_if_it_says_why_it_ends(
    gateway: Callable[..., str], plain: str
) -> None:
    assert "".join(stream(gateway([plain]), "abrupt x")) == "x " * 5


def test_a_replica_that_says_nothing_in_time_is_left_for_another(
    gateway: Callable[..., str], plain: str
) -> None:
    with fake("slow", "stall=1") as (_, slow):
        address = gateway([slow, plain], timeouts={"first_byte": 0.3})
        assert "".join(stream(address, "held x")) == "x " * 5
        assert metric(address, "modelglue_upstream_failures_total") == 1


def test_a_whole_answer_that_does_not_come_in_time_is_asked_of_another(
    gateway: Callable[..., str], plain: str
) -> None:
    with fake("slow", "pause=20") as (_, slow):
        address = gateway([slow, plain], timeouts={"whole": 0.3})
        reply = client(address).completions.create(model="numbers", prompt="a x")
        assert reply.choices[0].text == "x " * 5
        assert metric(address, "modelglue_upstream_failures_total") == 1


def test_cookies_of_an_upstream_are_kept_for_nobody(gateway: Callable[..., str]) -> None:
    with fake("sticky", "cookie=session=one; Path=/") as (_, upstream):
        api = client(gateway([upstream]))
        for _ in range(2):
            api.completions.create(model="numbers", prompt="a x")
        assert asked(upstream)["cookies"] == ["", ""]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_private_authority_is_trusted_if_the_file_names_it(
    gateway: Callable[..., str], tmp_path: Path
) -> None:
    pem = tmp_path / "server.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=here"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(pem), "-out", "-"]
    made = subprocess.run(["openssl", *words.split(), *names], capture_output=True, check=True)
    (tmp_path / "ca.pem").write_bytes(made.stdout)
    pem.write_bytes(pem.read_bytes() + made.stdout)
    with fake("private", f"pem={pem}") as (_, found):
        upstream = found.replace("http:", "https:")
        with pytest.raises(openai.InternalServerError, match="no server of expert"):
            list(stream(gateway([upstream]), "a x"))
        assert "".join(stream(gateway([upstream], ca="ca.pem"), "a x")) == "x " * 5


def test_a_request_that_takes_too_long_in_all_is_given_up(gateway: Callable[..., str]) -> None:
    with fake("slow", "stall=1") as (_, slow):
        address = gateway([slow], timeouts={"total": 0.3})
        with pytest.raises(openai.InternalServerError) as caught:
            list(stream(address, "held x"))
        assert caught.value.status_code == 504
        told: list[str] = []
        with pytest.raises(openai.APIError, match="no whole answer"):
            told.extend(stream(address, "begun x"))
        assert told == ["x "]


def test_who_leaves_is_left_by_the_upstream_too(gateway: Callable[..., str]) -> None:
    with fake("slow", "stall=1") as (_, slow):
        address = gateway([slow])
        answer = client(address).completions.create(model="numbers", prompt="begun x", stream=True)
        assert next(iter(answer)).choices[0].text == "x "
        assert asked(slow)["open"] == 1
        answer.close()
        until(lambda: asked(slow)["open"] == 0)


def test_requests_beyond_what_replicas_take_wait_their_turn(gateway: Callable[..., str]) -> None:
    with fake("one", "pause=0.002") as (_, upstream):
        address = gateway([upstream], concurrent=2)
        answers = asyncio.run(ask_all(address, [f"a {i}" for i in range(20)]))
        assert [text for text, _ in answers] == [f"{i} " * 5 for i in range(20)]


async def ask_all(address: str, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """What each was told, and the error that it ended with, if any."""

    async def ask(api: openai.AsyncOpenAI, prompt: str) -> tuple[str, str]:
        told = ""
        try:
            parts = await api.completions.create(model="numbers", prompt=prompt, stream=True)
            async for part in parts:
                told += part.choices[0].text
        except openai.APIError as error:
            return told, str(error)
        return told, ""

    api = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
    async with api:
        return await asyncio.gather(*(ask(api, prompt) for prompt in prompts))


def test_killed_amid_answers_what_had_not_begun_is_answered_by_another(
    gateway: Callable[..., str],
) -> None:
    # The other is slow enough to have its share of what comes, however slowly it comes.
    with fake("doomed", "stall=1") as (program, doomed), fake("other", "pause=0.1") as (_, other):
        address = gateway([doomed, other])
        prompts = [f"{'held' if i % 4 < 2 else 'begun'} {i}" for i in range(40)]
        at_doomed: list[str] = []

        def has_come() -> bool:
            at_doomed[:] = [body["prompt"] for body in asked(doomed)["asked"]]
            return len(at_doomed) + len(asked(other)["asked"]) == len(prompts)

        async def run() -> list[tuple[str, str]]:
            asking = asyncio.create_task(ask_all(address, prompts))
            await asyncio.to_thread(until, has_come)
            await asyncio.sleep(0.3)
            os.kill(program.pid, signal.SIGKILL)
            return await asking

        answers = asyncio.run(run())
        for prompt, (told, error) in zip(prompts, answers, strict=True):
            word = prompt.split()[-1] + " "
            if error:
                assert "broke off" in error
                assert told == word
            else:
                assert told == word * 5
        broken = {prompt for prompt, (_, error) in zip(prompts, answers, strict=True) if error}
        assert broken == {prompt for prompt in at_doomed if prompt.startswith("begun")}
        assert broken
        assert any(prompt.startswith("held") for prompt in at_doomed)
        assert "".join(stream(address, "a b")) == "b " * 5


def test_killed_under_two_hundred_streams_none_is_lost_or_mixed_up(
    gateway: Callable[..., str],
) -> None:
    # So slow that it is amid answers whenever it is killed, however slowly requests come.
    with (
        fake("doomed", "pause=0.4") as (program, doomed),
        fake("other", "pause=0.01") as (_, other),
    ):
        address = gateway([doomed, other])
        prompts = [f"a {i}" for i in range(200)]

        def is_amid() -> bool:
            found = asked(doomed)
            return found["open"] > 0 and len(found["asked"]) + len(asked(other)["asked"]) >= 60

        async def run() -> list[tuple[str, str]]:
            asking = asyncio.create_task(ask_all(address, prompts))
            await asyncio.to_thread(until, is_amid, 60)
            await asyncio.sleep(0.1)
            os.kill(program.pid, signal.SIGKILL)
            return await asking

        answers = asyncio.run(run())
        for prompt, (told, error) in zip(prompts, answers, strict=True):
            word = prompt.split()[-1] + " "
            if error:
                assert told, error
                assert (word * 5).startswith(told)
                assert "broke off" in error
            else:
                assert told == word * 5
        assert sum(bool(error) for _, error in answers) <= 32
        # It was killed amid them.
        assert metric(address, "modelglue_upstream_failures_total") >= 1
