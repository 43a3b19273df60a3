"""Real `transformers serve` processes: behind the gateway, and for stock mixtures as they are."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from serving_samples import HTTP, PROMPTS, client, metric, process, until

from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.stock import write_stock

pytestmark = pytest.mark.slow
Server = tuple[subprocess.Popen[bytes], str]


@contextmanager
def transformers_serve(model: Path) -> Iterator[Server]:
    """A `transformers serve` that holds one model; it takes a while until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as line:
        port = line.getsockname()[1]
    words = [str(model), "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    program = subprocess.Popen(
        [str(Path(sys.executable).with_name("transformers")), "serve", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        yield program, address
    finally:
        program.kill()
        program.wait()


def ready(server: Server) -> Server:
    """The server, when it answers."""
    program, address = server

    def answers() -> bool:
        assert program.poll() is None
        try:
            return HTTP.get(f"{address}/health").status_code == 200
        except httpx.TransportError:
            return False

    until(answers, 300)
    return server


@pytest.fixture(scope="module")
def upstreams(expert_folders: Mapping[str, Path]) -> Iterator[dict[str, list[Server]]]:
    """Two servers of `numbers`, one of `words`."""
    with ExitStack() as stack:
        started = {
            name: [
                stack.enter_context(transformers_serve(expert_folders[name])) for _ in range(count)
            ]
            for name, count in (("numbers", 2), ("words", 1))
        }
        yield {name: [ready(server) for server in servers] for name, servers in started.items()}


@pytest.fixture(scope="module")
def address(
    upstreams: dict[str, list[Server]],
    bundle_path: Path,
    expert_folders: Mapping[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """A real gateway before them; `signs` is answered in its process."""
    entries: list[dict[str, Any]] = [
        {
            "name": name,
            "urls": [url for _, url in servers],
            "model": str(expert_folders[name]),
        }
        for name, servers in upstreams.items()
    ]
    entries.append({"name": "signs", "local": True})
    path = tmp_path_factory.mktemp("gateway") / "upstreams.yaml"
    path.write_text(yaml.safe_dump({"experts": entries, "probe": {"every": 0.5}}))
    words = ["serve", bundle_path, "--port", 0, "--upstreams", path]
    with process(["-m", "modelglue.cli", *words]) as (_, found):
        yield found


def talk(kind: str) -> Any:
    return [{"role": "user", "content": PROMPTS[kind][0]}]


@pytest.mark.parametrize("kind", ["numbers", "words"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_what_the_server_behind_gives(
    address: str,
    upstreams: dict[str, list[Server]],
    expert_folders: Mapping[str, Path],
    kind: str,
    stream: bool,
) -> None:
    asked: dict[str, Any] = {
        "messages": talk(kind),
        "max_tokens": 12,
        "temperature": 0,
        "stream": stream,
    }

    def text_of(reply: Any) -> str:
        if stream:
            return "".join(p.choices[0].delta.content or "" for p in reply if p.choices)
        return str(reply.choices[0].message.content)

    direct = client(upstreams[kind][0][1]).chat.completions.create(
        model=str(expert_folders[kind]), **asked
    )
    raw = client(address).chat.completions.with_raw_response.create(model="glued", **asked)
    assert raw.headers["x-modelglue-expert"] == kind
    assert text_of(raw.parse()) == text_of(direct)


def test_a_server_and_the_process_answer_alike(address: str, bundle: Bundle) -> None:
    for kind in PROMPTS:
        prompt = PROMPTS[kind][1]
        reply = client(address).completions.create(
            model="glued", prompt=prompt, max_tokens=8, temperature=0
        )
        assert reply.choices[0].text == bundle.generate([prompt], max_new_tokens=8)[0]


def test_a_stock_mixture_is_served_as_it_is(
    expert_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    experts = {name: expert_folders[name] for name in ("numbers", "words")}
    routers = [LinearRouter(_random(2, 32, seed=layer), _zeros(2)) for layer in range(4)]
    out = tmp_path / "stock"
    write_stock(out, experts, experts["numbers"], routers, kind=MixtureKind("ffn", input="token"))
    alone = HuggingFaceModel.load(out)
    with transformers_serve(out) as server:
        _, served = ready(server)
        reply = client(served).completions.create(
            model=str(out), prompt="Q: 12", max_tokens=8, temperature=0
        )
        assert reply.choices[0].text == alone.generate(["Q: 12"], max_new_tokens=8)[0]


def test_a_killed_server_is_replaced_by_its_replica(
    address: str, upstreams: dict[str, list[Server]]
) -> None:
    program, _ = upstreams["numbers"][0]
    os.kill(program.pid, signal.SIGKILL)
    for _ in range(4):
        reply = client(address).chat.completions.create(
            model="glued", messages=talk("numbers"), max_tokens=4, temperature=0
        )
        assert reply.choices
    until(lambda: metric(address, "modelglue_upstream_live") == 2)
    last, _ = upstreams["numbers"][1]
    os.kill(last.pid, signal.SIGKILL)
    with pytest.raises(openai.InternalServerError):
        client(address).chat.completions.create(model="glued", messages=talk("numbers"))
    assert client(address).chat.completions.create(
        model="glued", messages=talk("words"), max_tokens=4
    )


def _random(*shape: int, seed: int) -> Any:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _zeros(*shape: int) -> Any:
    import torch

    return torch.zeros(*shape)
