"""What Prometheus reads at `/metrics`."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from modelglue.mixture.serving.backend import Trace

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one gateway; a registry of its own, so that two in a process don't mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        of = ["endpoint", "expert"]
        self.requests = Counter(
            "modelglue_requests", "Answered requests.", [*of, "status"], registry=registry
        )
        self.seconds = Histogram(
            "modelglue_request_seconds",
            "From a request to the end of its answer.",
            of,
            buckets=_SECONDS,
            registry=registry,
        )
        self.first = Histogram(
            "modelglue_first_token_seconds",
            "From a request to the first text of a streamed answer.",
            ["expert"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "modelglue_tokens", "Tokens, where known.", ["expert", "kind"], registry=registry
        )
        self.active = Gauge("modelglue_active_requests", "At work or waiting.", registry=registry)
        self.waiting = Gauge(
            "modelglue_waiting_requests", "Waiting for an expert.", ["expert"], registry=registry
        )
        self.loads = Counter(
            "modelglue_expert_loads", "Experts loaded.", ["expert"], registry=registry
        )
        self.unloads = Counter(
            "modelglue_expert_unloads", "Experts unloaded.", ["expert"], registry=registry
        )
        self.held = Gauge(
            "modelglue_expert_bytes", "Of weights in memory.", ["expert"], registry=registry
        )
        self.retries = Counter(
            "modelglue_upstream_retries", "Asked of another replica.", ["expert"], registry=registry
        )
        replica = ["expert", "replica"]
        self.failures = Counter(
            "modelglue_upstream_failures", "No answer, or half of one.", replica, registry=registry
        )
        self.live = Gauge(
            "modelglue_upstream_live", "1 where requests go.", replica, registry=registry
        )

    def watch(self, expert: str, what: str, nbytes: int) -> None:
        """Note that an expert came or went."""
        (self.loads if what == "load" else self.unloads).labels(expert).inc()
        self.held.labels(expert).set(nbytes if what == "load" else 0)

    def note(self, trace: Trace) -> None:
        """Note a request that has ended."""
        self.requests.labels(trace.endpoint, trace.expert, str(trace.status)).inc()
        now = time.monotonic()
        self.seconds.labels(trace.endpoint, trace.expert).observe(now - trace.started)
        if trace.retries:
            self.retries.labels(trace.expert).inc(trace.retries)
        if trace.first is not None:
            self.first.labels(trace.expert).observe(trace.first - trace.started)
        for kind in ("prompt", "completion"):
            if (count := getattr(trace, f"{kind}_tokens")) is not None:
                self.tokens.labels(trace.expert, kind).inc(count)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
