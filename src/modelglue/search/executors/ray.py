"""Actors on a Ray cluster, each with a resident model."""

import logging
import os
import pickle
import socket
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from modelglue.errors import ConfigError, RunError
from modelglue.search.executors import Factory, Job
from modelglue.search.executors.bench import Bench, Seat
from modelglue.search.executors.pool import Answer, Lost, Pool, Raised

PATIENCE = 120.0
"""Seconds in which one worker at least must have found a place on the cluster."""


class Actor:
    """One worker, from outside."""

    def __init__(self, ray: ModuleType, remote: Any, factory: bytes, seat: Seat) -> None:
        self._ray = ray
        self._handle = remote.remote(factory, seat)
        self.placed = self._handle.__ray_ready__.remote()
        self.pending: Any = self._handle.build.remote()

    def begin(self, job: Job) -> None:
        """See `Worker.begin`."""
        self.pending = self._handle.evaluate.remote(dict(job.coefficients), job.block)

    def answer(self) -> Answer:
        """What it has to say."""
        pending, self.pending = self.pending, None
        try:
            answer: Answer = self._ray.get(pending)
        except self._ray.exceptions.RayTaskError as error:
            # Errors of the work itself come as answers: this one is of the cluster's set-up.
            return Raised(RunError(f"a Ray worker cannot work: {error.cause}"), str(error))
        except self._ray.exceptions.RayError as error:
            return Lost(f"was lost: {str(error).splitlines()[0]}")
        return answer

    def end(self) -> None:
        """See `Worker.end`."""
        self._ray.kill(self._handle)


def actors(
    factory: Factory,
    *,
    workers: int,
    address: str | None = None,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0.0,
) -> Pool[Actor]:
    """An executor of so many actors; those that the cluster has room for work.

    Args:
        factory: what it needs (models, tasks, this package) must be there on every node.
        address: of the cluster, or "auto" for the one that this machine is part of; None starts
            one on this machine if it is part of none.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or no node of it has room for a
            worker.
    """
    ours = connect(address)
    import ray

    if (problem := _room_problem(ray.nodes(), cpus_per_worker, gpus_per_worker)) is not None:
        if ours:
            ray.shutdown()
        raise ConfigError(problem)
    remote = ray.remote(num_cpus=cpus_per_worker, num_gpus=gpus_per_worker)(Bench)
    pickled = pickle.dumps(factory)

    def answers(standing: Sequence[Actor]) -> list[tuple[Actor, Answer]]:
        # One that is placed will answer, or be lost; Ray would wait for a place for ever.
        placed, _ = ray.wait([actor.placed for actor in standing], timeout=PATIENCE)
        if not placed:
            raise RunError(_no_place(ray.available_resources(), cpus_per_worker, gpus_per_worker))
        by_pending = {actor.pending: actor for actor in standing if actor.pending is not None}
        ready, _ = ray.wait(list(by_pending), num_returns=1)
        return [(by_pending[each], by_pending[each].answer()) for each in ready]

    return Pool(
        workers,
        lambda i: Actor(ray, remote, pickled, Seat(i, cpus_per_worker, sees_all=False)),
        answers,
        on_close=ray.shutdown if ours else lambda: None,
    )


def _room_problem(nodes: Sequence[Mapping[str, Any]], cpus: int, gpus: float) -> str | None:
    """Why no worker fits on any node; None if one does."""
    has = [node["Resources"] for node in nodes if node["Alive"]]
    if any(of.get("CPU", 0) >= cpus and of.get("GPU", 0) >= gpus for of in has):
        return None
    each = "; ".join(f"{of.get('CPU', 0):g} CPUs and {of.get('GPU', 0):g} GPUs" for of in has)
    return (
        f"search.gpus_per_worker: a worker needs {cpus} CPU and {gpus:g} GPUs on one node, and the "
        f"nodes of the Ray cluster have {each}; workers would wait for ever"
    )


def _no_place(free: Mapping[str, float], cpus: int, gpus: float) -> str:
    return (
        f"no Ray worker found a place within {PATIENCE:g} seconds: each needs {cpus} CPU and "
        f"{gpus:g} GPUs, and free in the whole cluster are {free.get('CPU', 0):g} CPUs and "
        f"{free.get('GPU', 0):g} GPUs. Others are at work there: give the same command again when "
        "they are done, or set executor: workers"
    )


def connect(address: str | None) -> bool:
    """Make this process part of a cluster.

    Args:
        address: see `actors`; "local" starts one whatever there is.

    Returns:
        Whether it is to be disconnected in the end; not if it was part of one already.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "search.executor: ray is not installed; pip install 'modelglue[ray]', or use workers"
        ) from None
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address not in (None, "auto", "local"):
        _knock(str(address))
    if address != "local":
        try:
            ray.init(address=address or "auto", **quiet)
        except ConnectionError as error:
            if address is not None:
                raise _nobody(address, error) from None
        else:
            return True
    # What passes through its store is a few scores.
    ray.init(address="local", include_dashboard=False, object_store_memory=100 << 20, **quiet)
    return True


def _knock(address: str) -> None:
    """Refuse an address where nobody answers: Ray itself tries for minutes, and says nothing."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise _nobody(address, error) from None


def _nobody(address: str, error: Exception) -> ConfigError:
    why = f"{error} ({error.__cause__})" if error.__cause__ else f"{error}"
    return ConfigError(f"search.address: no Ray cluster answers at {address}: {why}")
