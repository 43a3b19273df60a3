"""Landlock, seccomp and resource limits: no namespaces, nothing to install, no privilege.

Weaker than bubblewrap in three ways, all stated in the package's docstring: the program shares the
caller's view of which paths exist, its disk use is watched instead of reserved, and other
processes are out of its reach only because every call that reaches them is refused.
"""

import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict

from modelglue.errors import SandboxUnavailable
from modelglue.evaluate.sandbox import interpreter, processes
from modelglue.evaluate.sandbox.batch import Worker, run_programs
from modelglue.evaluate.sandbox.inside import landlock, seccomp
from modelglue.evaluate.sandbox.interface import (
    DEFAULT_LIMITS,
    Isolation,
    Limits,
    Outcome,
    Program,
)

# Processes of the same user that may come up while programs run, other programs' threads among
# them: the kernel counts by user.
_ROOM_FOR_OTHERS = 512


class Landlock:
    """The sandbox where bubblewrap is missing or user namespaces are forbidden."""

    name = "landlock"

    def __init__(self, *, cores: int | None = None) -> None:
        """Ask the kernel.

        Args:
            cores: see `probe`.

        Raises:
            SandboxUnavailable: it has no landlock, or its calls are not known here.
        """
        if not sys.platform.startswith("linux"):
            raise SandboxUnavailable(f"landlock is part of Linux, this is {sys.platform}")
        if landlock.version() == 0:
            raise SandboxUnavailable(
                "this kernel offers no landlock (needs Linux 5.13, with landlock among its LSMs)"
            )
        if not seccomp.supported():
            raise SandboxUnavailable(
                f"no seccomp filter for {platform.machine()} (only x86_64 and aarch64)"
            )
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
        """One worker; each program is confined in its own fork."""
        readable = [
            *interpreter.SYSTEM_FOLDERS,
            *interpreter.SYSTEM_FILES,
            *interpreter.DEVICES,
            *interpreter.private_folders(),
        ]
        root = os.geteuid() == 0
        return start_here(
            {
                "protection": "landlock",
                "limits": asdict(limits),
                "processes_present": 0 if root else processes.of_this_user() + _ROOM_FOR_OTHERS,
                "readable": readable,
                "stranger": processes.stranger(),
            }
        )


def start_here(settings: dict[str, object]) -> Worker:
    """A worker as an ordinary process of the caller's, with a scratch folder of its own."""
    scratch = tempfile.mkdtemp(prefix="modelglue-")
    settings = {**settings, "scratch": scratch, "node": interpreter.node()}
    command = interpreter.worker_command(str(interpreter.INSIDE))
    return Worker(command, settings, folder=scratch)
