"""Landlock: a process gives up the file system, except for a few paths (kernel 5.13 and later)."""

import contextlib
import ctypes
import os
import struct
from collections.abc import Sequence

from .kernel import checked, libc

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_ASK_VERSION, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_FIFO, _MAKE_SYM = 1 << 7, 1 << 8, 1 << 10, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_RIGHTS_BY_VERSION = ((1 << 13) - 1, _REFER, _TRUNCATE, 0, 1 << 15)
_TCP_BIND_CONNECT = 0b11
_SCOPE_SOCKETS_SIGNALS = 0b11

_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_OWN = (
    (_READ & ~_EXECUTE)
    | _WRITE_FILE
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_FIFO
    | _MAKE_SYM
    | _REFER
    | _TRUNCATE
)


def version() -> int:
    """The kernel's landlock version, 0 if it has none or it was switched off at boot."""
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)))


def restrict(*, readable: Sequence[str], writable: Sequence[str]) -> None:
    """Give up every path but these, TCP, and signals to others as far as the kernel can tell."""
    known = version()
    rights = sum(_RIGHTS_BY_VERSION[:known])
    network = _TCP_BIND_CONNECT if known >= 4 else 0
    scope = _SCOPE_SOCKETS_SIGNALS if known >= 6 else 0
    # Older kernels refuse a longer struct unless the rest of it is zero: exactly what these are.
    attributes = struct.pack("=QQQ", rights, network, scope)
    ruleset = checked(
        libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock"
    )
    for path in readable:
        _allow(ruleset, path, _READ & rights)
    for path in writable:
        _allow(ruleset, path, _OWN & rights)
    checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    checked(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, place)
        checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), f"landlock: {path}")
        os.close(place)
