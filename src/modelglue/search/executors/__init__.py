"""Who evaluates the candidates: this process, processes beside it, or a Ray cluster.

Whoever it is, the same jobs have the same trials: an executor decides when and where, never what.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from modelglue.search.problem import Coefficients, Trial


@dataclass(frozen=True)
class Job:
    """A candidate to be evaluated.

    Attributes:
        block: which block of the items; None for all.
    """

    coefficients: Coefficients
    block: int | None = None


Evaluate = Callable[[Coefficients, int | None], Trial]
"""(candidate, block of the items or None for all) → its trial."""

Factory = Callable[[], Evaluate]
"""Called once inside each worker, so it must survive pickling; what it returns need not."""


class Executor(Protocol):
    """Does jobs, several side by side where it has several workers.

    Attributes:
        workers: how many jobs are done at once.
    """

    @property
    def workers(self) -> int:
        """See above."""
        ...

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Trial]]:
        """Do all of them; whoever stops listening stops those under way.

        Returns:
            (index of a job, its trial) as they finish, each once.
        """
        ...

    def close(self) -> None:
        """End all workers at once; what they were at is lost."""
        ...


def executor(
    kind: str,
    factory: Factory,
    *,
    workers: int = 1,
    address: str | None = None,
    gpus_per_worker: float = 0.0,
) -> Executor:
    """The executor of that kind; its workers start when there is something to do.

    Args:
        kind: `serial`, `workers` or `ray`.
        factory: see there.
        workers: how many; the serial one is alone.
        address: of a Ray cluster; None for the one that this machine is part of, or its own.
        gpus_per_worker: of a Ray worker; a fraction lets several share one, 2 are its own.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    # Each brings in what the others can do without.
    if kind == "serial":
        from modelglue.search.executors.serial import Serial

        built = cache(factory)
        return Serial(lambda coefficients, block: built()(coefficients, block))
    if kind == "workers":
        from modelglue.search.executors.workers import processes

        return processes(factory, workers=workers)
    if kind == "ray":
        from modelglue.search.executors.ray import actors

        return actors(factory, workers=workers, address=address, gpus_per_worker=gpus_per_worker)
    raise ValueError(f"there is no executor {kind!r}")
