"""No sandbox: model-written code as the user, with nothing but resource limits around it.

For machines that offer no protection, and only on the user's word (`--unsafe-code`): such a
program can read and delete whatever the user can, and use the network. Forged successes are
refused here as everywhere.
"""

from collections.abc import Sequence
from dataclasses import asdict

from modelglue.evaluate.sandbox import processes
from modelglue.evaluate.sandbox.batch import Worker, run_programs
from modelglue.evaluate.sandbox.interface import (
    DEFAULT_LIMITS,
    Isolation,
    Limits,
    Outcome,
    Program,
)
from modelglue.evaluate.sandbox.landlock import start_here

_ROOM_FOR_OTHERS = 512


class Unprotected:
    """Resource limits and the handshake, no more."""

    name = "unprotected"

    def __init__(self, *, cores: int | None = None) -> None:
        """See `probe` for `cores`."""
        self._cores = cores

    def run(
        self,
        programs: Sequence[Program],
        *,
        limits: Limits = DEFAULT_LIMITS,
        isolation: Isolation = "batch",
    ) -> list[Outcome]:
        """Run every program; identical ones once."""
        return run_programs(self.start, programs, limits, isolation, self._cores)

    def start(self, limits: Limits) -> Worker:
        """One worker, an ordinary process."""
        present = processes.of_this_user() + _ROOM_FOR_OTHERS
        return start_here(
            {"protection": "none", "limits": asdict(limits), "processes_present": present}
        )
