"""What a fork gives up before it touches a program."""

import ctypes
import math
import os
import resource
import signal
import struct
from typing import Any

from . import landlock, seccomp
from .kernel import checked, libc

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP = 1, 4, 8, 24
_PR_CAP_AMBIENT, _AMBIENT_RAISE = 47, 2
_CAP_DAC_READ_SEARCH, _LAST_CAPABILITY = 2, 40
_CAPABILITY_VERSION_3 = 0x20080522
_OPEN_FILES = 64
_NODE_RESERVE = 256 << 20  # what node takes before the program's first line


def hide() -> None:
    """Keep processes of the same user out of this one's memory."""
    checked(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")


def confine(settings: dict[str, Any], home: str, language: str) -> None:
    """Enter the limits and filters that `settings` asks for; there is no way back."""
    protection = settings["protection"]
    if protection == "landlock" and os.geteuid() == 0:
        _become_a_stranger(settings["stranger"], home)
    _limit_resources(settings, language)
    # After the change of uid, which resets it: a worker that is killed takes its program along.
    checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "death signal")
    if protection == "landlock":
        landlock.restrict(readable=settings["readable"], writable=[home, "/dev/null"])
    if protection != "none" and seccomp.supported():
        program = seccomp.filter_program(os.getpid(), protect_attributes=protection == "landlock")
        seccomp.install(program)


def _limit_resources(settings: dict[str, Any], language: str) -> None:
    limits = settings["limits"]
    seconds = max(1, math.ceil(limits["seconds"]))
    # The soft limit's signal can be caught, the hard one's cannot.
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    _limit(resource.RLIMIT_FSIZE, limits["file_size"])
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _limit(resource.RLIMIT_MSGQUEUE, 0)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_NPROC, limits["processes"] + settings["processes_present"])
    if language == "python":
        _limit(resource.RLIMIT_AS, limits["memory"])
    else:
        _limit(resource.RLIMIT_DATA, limits["memory"] + _NODE_RESERVE)


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    _, ceiling = resource.getrlimit(which)
    hard = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(which, (soft, hard))


def _become_a_stranger(uid: int, home: str) -> None:
    """Stop being root, except that permissions don't keep the interpreter's files from being read.

    It may live in root's own home; landlock decides what else can be read.
    """
    os.chown(home, uid, uid)
    for capability in range(_LAST_CAPABILITY + 1):
        if capability != _CAP_DAC_READ_SEARCH:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    checked(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    kept = 1 << _CAP_DAC_READ_SEARCH
    sets = ctypes.create_string_buffer(struct.pack("=6I", kept, kept, kept, 0, 0, 0), 24)
    checked(libc.capset(header, sets), "capset")
    ambient = libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, _CAP_DAC_READ_SEARCH, 0, 0)
    checked(ambient, "ambient capability")  # node has it too
