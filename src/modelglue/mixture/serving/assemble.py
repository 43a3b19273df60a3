"""A bundle, settings, and perhaps a file of upstreams, put together into an application."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpx
from starlette.applications import Starlette

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import InputError, MixtureError
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.machine import memory_of
from modelglue.mixture.bundle import Bundle, opening
from modelglue.mixture.serving.application import application
from modelglue.mixture.serving.backend import Backend
from modelglue.mixture.serving.gateway import Gateway
from modelglue.mixture.serving.local import LocalExpert
from modelglue.mixture.serving.metrics import Metrics
from modelglue.mixture.serving.pool import ExpertPool
from modelglue.mixture.serving.probing import probing
from modelglue.mixture.serving.replicas import Replicas
from modelglue.mixture.serving.settings import Limits, Timeouts
from modelglue.mixture.serving.upstream_config import Upstream, Upstreams, load_upstreams
from modelglue.mixture.serving.upstreams import UpstreamExpert

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Settings:
    """How a bundle is served.

    Args:
        name: what clients call it; by default its folder's name.
        upstreams: where its experts are served; None: all in this process.
        memory: bytes for the weights of experts in this process; None: half of the machine's.
        key: that clients must give.
        host: what the server listens on; without a key it answers to no other name.
    """

    name: str | None = None
    upstreams: Path | None = None
    memory: int | None = None
    device: str = "cpu"
    dtype: str = "auto"
    key: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"
    log_prompts: bool = False
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)


def assemble(bundle: Bundle, settings: Settings) -> Starlette:
    """The application that serves a bundle, for any ASGI server.

    Raises:
        MixtureError: the bundle cannot be served.
        ConfigError: the file of upstreams is wrong.
        InputError: an expert needs more memory than there may be.
    """
    name = settings.name or bundle.path.absolute().name
    _require_servable(bundle, name)
    metrics = Metrics()
    elsewhere = Upstreams((), settings.timeouts)
    if settings.upstreams is not None:
        elsewhere = load_upstreams(settings.upstreams, bundle.experts, timeouts=settings.timeouts)
    served = {upstream.name for upstream in elsewhere.experts}
    local = [expert for expert in bundle.experts if expert not in served]
    pool = _pool(bundle, local, settings, metrics)
    client = httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
        follow_redirects=False,
        trust_env=False,
        verify=True if elsewhere.trust is None else elsewhere.trust,
        # What one client's answer sets is not to go out with the request of another.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )
    groups = {
        upstream.name: _replicas(upstream, elsewhere, settings.limits, metrics)
        for upstream in elsewhere.experts
    }
    longest = settings.limits.answer_tokens
    backends: dict[str, Backend] = {
        expert: LocalExpert(expert, pool, longest=longest) for expert in local
    }
    for expert in local:
        metrics.waiting.labels(expert).set_function(partial(pool.waiting, expert))
    for upstream in elsewhere.experts:
        group = groups[upstream.name]
        backends[upstream.name] = _elsewhere(upstream, group, client, elsewhere, metrics, longest)
        metrics.waiting.labels(upstream.name).set_function(group.waiting)
    # One thread: a tokenizer is not to be used by two.
    routing = ThreadPoolExecutor(1, thread_name_prefix="route")

    async def route(text: str) -> str:
        loop = asyncio.get_running_loop()
        routes = await loop.run_in_executor(routing, bundle.route, [text])
        return bundle.experts[routes[0].expert]

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(routing.shutdown, wait=False)
            await stack.enter_async_context(client)
            pool.start()
            stack.push_async_callback(pool.close)
            await stack.enter_async_context(probing(elsewhere, groups, client))
            yield

    gateway = Gateway(
        name,
        route=route,
        opening=opening,
        backends={expert: backends[expert] for expert in bundle.experts},
        limits=settings.limits,
        timeouts=elsewhere.timeouts,
        metrics=metrics,
        key=settings.key,
        host=settings.host,
        log_prompts=settings.log_prompts,
    )
    return application(gateway, lifespan=lifespan)


def _require_servable(bundle: Bundle, name: str) -> None:
    if bundle.top_k > 1:
        raise MixtureError(
            f"{bundle.path}: {bundle.top_k} experts answer each prompt together (top_k: "
            f"{bundle.top_k}), and a gateway asks one; make the mixture with top_k: 1 to serve it"
        )
    if name in bundle.experts:
        raise MixtureError(
            f"the bundle and one of its experts are both called {name!r}; call the bundle "
            "something else with --name"
        )


def _pool(
    bundle: Bundle, experts: Sequence[str], settings: Settings, metrics: Metrics
) -> ExpertPool:
    places = {entry.name: bundle.path / entry.path for entry in bundle.manifest.experts}
    folders = {expert: places[expert] for expert in experts}
    sizes = {expert: _size(folder, settings.dtype) for expert, folder in folders.items()}
    memory = memory_of(settings.device) // 2 if settings.memory is None else settings.memory
    large = [f"{expert} ({size / 2**30:.2f})" for expert, size in sizes.items() if size > memory]
    if large:
        raise InputError(
            f"memory: {memory / 2**30:.2f} GiB cannot hold {', '.join(large)}; give more with "
            "--memory, or serve them elsewhere with --upstreams"
        )

    def load(folder: Path) -> HuggingFaceModel:
        return HuggingFaceModel.load(
            folder, device=settings.device, dtype=settings.dtype, batch_size=1
        )

    return ExpertPool(
        folders,
        sizes=sizes,
        memory=memory,
        queue=settings.limits.queue,
        load=load,
        watch=metrics.watch,
    )


def _size(folder: Path, dtype: str) -> int:
    with Checkpoint.open(folder) as checkpoint:
        return checkpoint.parameters * _BYTES[dtype] if dtype in _BYTES else checkpoint.nbytes


def _replicas(
    upstream: Upstream, elsewhere: Upstreams, limits: Limits, metrics: Metrics
) -> Replicas:
    def watch(url: str, live: object) -> None:
        metrics.live.labels(upstream.name, url).set(bool(live))

    return Replicas(
        upstream.name,
        upstream.urls,
        concurrent=elsewhere.concurrent,
        queue=limits.queue,
        failures=elsewhere.probe.failures,
        probe_seconds=elsewhere.probe.every,
        watch=watch,
    )


def _elsewhere(
    upstream: Upstream,
    group: Replicas,
    client: httpx.AsyncClient,
    elsewhere: Upstreams,
    metrics: Metrics,
    longest: int,
) -> UpstreamExpert:
    def failed(url: str) -> None:
        metrics.failures.labels(upstream.name, url).inc()

    return UpstreamExpert(
        upstream, group, client, elsewhere.timeouts, longest=longest, failed=failed
    )
