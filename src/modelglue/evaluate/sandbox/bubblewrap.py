"""Namespaces through bubblewrap: the program's world holds the interpreter and one empty folder.

No /proc, no network, no other process, nothing writable but a sized tmpfs, and no capability to
change any of it.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict

from modelglue.errors import SandboxUnavailable
from modelglue.evaluate.sandbox import interpreter, processes, stepdown
from modelglue.evaluate.sandbox.batch import Worker, run_programs
from modelglue.evaluate.sandbox.interface import (
    DEFAULT_LIMITS,
    Isolation,
    Limits,
    Outcome,
    Program,
)

_INSIDE = "/harness/inside"
_UID = "1000"
# The worker and bubblewrap's own process live in the same user namespace and count with the rest.
_OURS = 2


class Bubblewrap:
    """The sandbox of choice: works as root and as anyone who may create user namespaces."""

    name = "bubblewrap"

    def __init__(self, *, cores: int | None = None) -> None:
        """Find bubblewrap.

        Args:
            cores: see `probe`.

        Raises:
            SandboxUnavailable: it is not installed.
        """
        found = shutil.which("bwrap")
        if found is None:
            raise SandboxUnavailable("bubblewrap is not installed (no bwrap on the path)")
        self._bwrap = os.path.realpath(found)
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
        """One sandbox, ready for programs."""
        private = [*interpreter.private_folders(), str(interpreter.INSIDE)]
        seen_as = [*private[:-1], _INSIDE]
        settings = {
            "protection": "namespaces",
            "limits": asdict(limits),
            "processes_present": _OURS + processes.counted_elsewhere(),
            "scratch": "/tmp",
            "node": interpreter.node(),
        }
        if os.geteuid() != 0:
            return Worker(self._command(private, seen_as, limits), settings)
        # In /tmp, which anyone may enter, not in TMPDIR; and only until the sandbox stands: what is
        # bound there stays bound inside.
        with tempfile.TemporaryDirectory(prefix="modelglue-", dir="/tmp") as stage:
            os.chmod(stage, 0o711)
            staged = [os.path.join(stage, str(number)) for number in range(len(private))]
            step_down = [interpreter.python(), "-IS", stepdown.__file__]
            step_down += [str(processes.stranger()), stage, *private, "--"]
            return Worker([*step_down, *self._command(staged, seen_as, limits)], settings)

    def _command(self, sources: Sequence[str], seen_as: Sequence[str], limits: Limits) -> list[str]:
        command = [
            self._bwrap,
            *("--unshare-all", "--unshare-user", "--disable-userns"),
            *("--die-with-parent", "--new-session", "--as-pid-1"),
            *("--cap-drop", "ALL", "--uid", _UID, "--gid", _UID, "--hostname", "sandbox"),
            *("--clearenv", "--setenv", "LANG", "C.UTF-8", "--setenv", "PYTHONHASHSEED", "0"),
        ]
        for folder in interpreter.SYSTEM_FOLDERS:
            if os.path.islink(folder):
                command += ["--symlink", os.readlink(folder), folder]
            elif os.path.isdir(folder):
                command += ["--ro-bind", folder, folder]
        for file in interpreter.SYSTEM_FILES:
            command += ["--ro-bind-try", file, file]
        for device in interpreter.DEVICES:
            command += ["--dev-bind", device, device]
        for source, place in zip(sources, seen_as, strict=True):
            command += ["--ro-bind", source, place]
        command += ["--size", str(limits.disk), "--tmpfs", "/tmp", "--remount-ro", "/"]
        return [*command, "--", *interpreter.worker_command(_INSIDE)]
