"""A seccomp filter: the calls in `syscalls` fail with EPERM, everything else goes through.

A list of what is refused, not of what is allowed: an allow-list breaks with the next libc or node,
and what is not refused here still meets the namespaces or landlock, and the resource limits.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence

from . import syscalls
from .kernel import checked, libc

_COLUMNS = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_X32_CALLS = 0x40000000

_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data, little endian.
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24

_CLONE_THREAD = 0x00010000
_AF_UNIX = 1
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def supported() -> bool:
    """Whether the numbers of this architecture's system calls are known here."""
    return platform.machine() in _COLUMNS


def filter_program(pid: int, *, protect_attributes: bool) -> list[Instruction]:
    """The filter for one process.

    Args:
        pid: its own, the only one that it may signal or limit.
        protect_attributes: refuse changes of mode, owner, times and extended attributes as well.
    """
    column = _COLUMNS[platform.machine()]
    refused = dict(syscalls.ALWAYS)
    if protect_attributes:
        refused.update(syscalls.FILE_ATTRIBUTES)
    numbers = [entry[column] for entry in refused.values()]
    judged = {name: entry[column] for name, entry in syscalls.JUDGED.items()}

    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[column]),
        _give(_KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if column == 0:
        program += [(_AT_LEAST, 0, 1, _X32_CALLS), _give(_KILL)]
    for number in numbers:
        if number is not None:
            program += [(_EQUAL, 0, 1, number), _give(_ERRNO | errno.EPERM)]
    # Without clone3 libc falls back on clone, whose flags a filter can read.
    program += [(_EQUAL, 0, 1, judged["clone3"]), _give(_ERRNO | errno.ENOSYS)]
    program += _only(judged["clone"], [(_ANY_BIT, 1, 0, _CLONE_THREAD)])
    program += _only(judged["socketpair"], [(_EQUAL, 1, 0, _AF_UNIX)])
    program += _only(judged["kill"], [(_EQUAL, 1, 0, pid)])
    program += _only(judged["tgkill"], [(_EQUAL, 1, 0, pid)])
    program += _only(judged["prlimit64"], [(_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, pid)])
    program += _never(judged["fcntl"], syscalls.FCNTL_SIGNALS)
    program += _never(judged["ioctl"], syscalls.IOCTL_SIGNALS)
    return [*program, _give(_ALLOW)]


def install(program: list[Instruction]) -> None:
    """Bind this process, and all that it may become, to the filter."""
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    instructions = ctypes.create_string_buffer(packed, len(packed))

    class Header(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    header = Header(len(program), ctypes.addressof(instructions))
    checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    checked(libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(header), 0, 0), "seccomp")


def _give(verdict: int) -> Instruction:
    return (_RETURN, 0, 0, verdict)


def _only(number: int, conditions: list[Instruction]) -> list[Instruction]:
    """Allow a call if its first argument meets a condition, else refuse it."""
    block: list[Instruction] = [
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *conditions,
        _give(_ERRNO | errno.EPERM),
        _give(_ALLOW),
    ]
    return [(_EQUAL, 0, len(block), number), *block]


def _never(number: int, commands: Sequence[int]) -> list[Instruction]:
    """Refuse a call if its second argument is one of these, else allow it."""
    block: list[Instruction] = [(_LOAD, 0, 0, _SECOND_ARGUMENT)]
    for command in commands:
        block += [(_EQUAL, 0, 1, command), _give(_ERRNO | errno.EPERM)]
    block.append(_give(_ALLOW))
    return [(_EQUAL, 0, len(block), number), *block]
