"""Where this interpreter and node live, and how the worker is started with them."""

import os
import shutil
import sys
from pathlib import Path

# What programs need besides the interpreter; each only where it exists.
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store")
SYSTEM_FILES = ("/etc/ld.so.cache",)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

_PARTS = ("bin", "lib", "lib64")

INSIDE = Path(__file__).parent / "inside"


def python() -> str:
    """The interpreter itself, behind any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def node() -> str | None:
    """The node on the caller's path, if there is one."""
    found = shutil.which("node")
    return os.path.realpath(found) if found else None


def private_folders() -> list[str]:
    """The folders that hold the interpreter, where the system's own don't."""
    folders = {sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.dirname(python()))}
    binary = node()
    if binary is not None:
        folders.add(os.path.dirname(os.path.dirname(binary)))
    outside = {folder for folder in map(os.path.realpath, folders) if not _in_the_system(folder)}
    # Not the whole prefix: it may be somebody's home.
    parts = (os.path.join(prefix, part) for prefix in outside for part in _PARTS)
    return sorted(part for part in parts if os.path.isdir(part))


def worker_command(inside: str) -> list[str]:
    """Start `inside.worker` from the folder `inside`, with no site packages of the user's.

    Args:
        inside: where the package is found, as seen by the worker.
    """
    start = f"import sys; sys.path.insert(0, {os.path.dirname(inside)!r}); "
    return [
        python(),
        "-sPB",
        "-W",
        "ignore",
        "-c",
        start + "from inside import worker; worker.main()",
    ]


def _in_the_system(folder: str) -> bool:
    return any(Path(folder).is_relative_to(place) for place in SYSTEM_FOLDERS)
