"""Find the strongest sandbox that this machine offers, and watch it hold before trusting it."""

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from modelglue.errors import SandboxUnavailable
from modelglue.evaluate.sandbox.bubblewrap import Bubblewrap
from modelglue.evaluate.sandbox.interface import MIB, Limits, Program, Sandbox
from modelglue.evaluate.sandbox.landlock import Landlock
from modelglue.evaluate.sandbox.unprotected import Unprotected

_LIMITS = Limits(memory=256 * MIB, processes=16, file_size=2 * MIB, disk=8 * MIB)
_CANDIDATES: tuple[Callable[..., Sandbox], ...] = (Bubblewrap, Landlock)


def probe(*, unsafe: bool = False, cores: int | None = None) -> Sandbox:
    """The strongest sandbox that stands up to a set of small attacks on this machine.

    Args:
        unsafe: the user's word (`--unsafe-code`) that model-written code may run as the user, with
            nothing but resource limits, where no sandbox can be had. Where one can, it is used.
        cores: how many of the machine's this process may use, one program a core: a process beside
            others gives its share. None for all that it is allowed.

    Raises:
        SandboxUnavailable: there is none; says why of each and what can be done.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable(f"model-written code can be run on Linux only, not {sys.platform}")
    reasons = []
    for candidate in _CANDIDATES:
        try:
            sandbox = candidate(cores=cores)
            check(sandbox)
        except SandboxUnavailable as error:
            reasons.append(str(error))
        else:
            return sandbox
    if unsafe:
        return Unprotected(cores=cores)
    raise SandboxUnavailable(
        "No sandbox for model-written code: "
        + "; ".join(reasons)
        + ". Install bubblewrap (apt install bubblewrap, dnf install bubblewrap) or use a machine "
        "whose kernel allows user namespaces or landlock. --unsafe-code runs such code "
        "unprotected: as you, free to read, change and delete your files and to use the network."
    )


def check(sandbox: Sandbox) -> None:
    """Let the sandbox run a correct program, and attacks that pass if they succeed.

    Raises:
        SandboxUnavailable: it failed either way.
    """
    with tempfile.TemporaryDirectory(prefix="modelglue-") as folder, socket.socket() as listener:
        Path(folder, "canary").write_text("canary")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        attacks = _attacks(folder, listener.getsockname()[1])
        programs = [Program("assert sum(range(4)) == 6"), *map(Program, attacks.values())]
        correct, *attacked = sandbox.run(programs, limits=_LIMITS)
        if not correct.passed:
            raise SandboxUnavailable(
                f"{sandbox.name} fails a correct program ({correct.reason}: {correct.detail})"
            )
        held = dict(zip(attacks, (not outcome.passed for outcome in attacked), strict=True))
        held["write outside the sandbox"] &= os.listdir(folder) == ["canary"]
    broken = [attack for attack, stopped in held.items() if not stopped]
    if broken:
        raise SandboxUnavailable(f"{sandbox.name} does not stop: {', '.join(broken)}")


def _attacks(folder: str, port: int) -> dict[str, str]:
    """What is tried, by what it would mean if it worked."""
    return {
        "a forged success": "import os\nos._exit(0)",
        "read the caller's files": f"assert open({folder!r} + '/canary').read() == 'canary'",
        "write outside the sandbox": f"open({folder!r} + '/written', 'w').close()",
        "reach the network": (
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)"
        ),
        "signal the caller": f"import os\nos.kill({os.getpid()}, 0)",
        "signal the caller by a file": (
            f"import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, {os.getpid()})"
        ),
        "start processes without end": (
            "import os, time\n"
            f"for _ in range({_LIMITS.processes + 8}):\n"
            "    if os.fork() == 0:\n"
            "        time.sleep(3)\n"
            "        os._exit(0)\n"
        ),
        "take memory without end": f"bytearray({2 * _LIMITS.memory})",
        "fill the disk": (
            f"for i in range({2 * _LIMITS.disk // _LIMITS.file_size}):\n"
            "    with open(f'{i}', 'wb') as file:\n"
            f"        for _ in range({_LIMITS.file_size // MIB}):\n"
            f"            file.write(bytes({MIB}))\n"
            "import time\ntime.sleep(1)\n"
        ),
    }
