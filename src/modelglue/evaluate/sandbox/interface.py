"""What the rest of the project sees of a sandbox."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

MIB = 1 << 20

# A program that computes ends by its CPU time; the clock is for those that wait for nothing.
_LEAST_WALL_SECONDS, _WALL_PER_CPU = 30.0, 6.0

Reason = Literal["passed", "failed", "timeout", "memory", "killed"]

# batch: programs run one after another in a few sandboxes, each in its own fork, and what one
# leaves is cleared before the next; program: each has a sandbox of its own, which ends with it.
Isolation = Literal["batch", "program"]


@dataclass(frozen=True)
class Program:
    """One self-testing program: it passes if its last statement is reached.

    Python sees itself as `__main__`, with `random` seeded and string hashes fixed, so that the
    same program always meets the same fate. JavaScript runs under node as a script with CommonJS's
    `require`, where a `return` between solution and tests is an error; a failed `console.assert`
    fails the program, whatever becomes of the exception.
    """

    source: str
    language: Literal["python", "javascript"] = "python"


@dataclass(frozen=True)
class Outcome:
    """How one program ended.

    `reason` is "failed" for an exception or an early exit, "timeout", "memory" (an allocation
    beyond the limit), or "killed" (a signal, too much output, too much disk); `detail` says more
    in one line.
    """

    passed: bool
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Args:
        seconds: CPU time; whole seconds are enforced by the kernel, so it is rounded up.
        wall_seconds: time on the clock, for programs that wait; by default so much longer that
            no busy machine changes a verdict.
        memory: bytes of address space (of private memory for JavaScript, whose engine reserves
            far more address space than it uses).
        processes: threads that a program may have; it may never start another process.
        file_size: bytes of a single file.
        disk: bytes of all its files together.
        output: bytes of standard output and standard error together.
    """

    seconds: float = 5.0
    wall_seconds: float = 0.0
    memory: int = 512 * MIB
    processes: int = 32
    file_size: int = 16 * MIB
    disk: int = 64 * MIB
    output: int = 1 * MIB

    def __post_init__(self) -> None:
        if not self.wall_seconds:
            patient = max(_LEAST_WALL_SECONDS, _WALL_PER_CPU * self.seconds)
            object.__setattr__(self, "wall_seconds", patient)


DEFAULT_LIMITS = Limits()


class Sandbox(Protocol):
    """Runs batches of programs that nobody trusts."""

    @property
    def name(self) -> str:
        """What protects, in a word that may stand in a report."""

    def run(
        self,
        programs: Sequence[Program],
        *,
        limits: Limits = ...,
        isolation: Isolation = ...,
    ) -> list[Outcome]:
        """Run every program; identical ones once.

        Returns:
            One outcome a program, in their order.

        Raises:
            SandboxUnavailable: a program could not be run.
        """


@dataclass(frozen=True)
class OneEach:
    """A sandbox that gives every program one of its own, whoever asks."""

    inner: Sandbox

    @property
    def name(self) -> str:
        """See `Sandbox.name`."""
        return self.inner.name

    def run(
        self,
        programs: Sequence[Program],
        *,
        limits: Limits = DEFAULT_LIMITS,
        isolation: Isolation = "program",
    ) -> list[Outcome]:
        """See `Sandbox.run`; `isolation` is "program" whatever is asked for."""
        return self.inner.run(programs, limits=limits, isolation="program")
