"""How the kernel counts processes against RLIMIT_NPROC."""

import contextlib
import os
import platform
import re
import secrets

_STRANGERS = range(2_000_000_000, 2_100_000_000)


def stranger() -> int:
    """A uid for programs of a caller who is root.

    Nobody's, so that it owns nothing, and a fresh one each time, so that the kernel's count of its
    processes counts nothing else.
    """
    return secrets.choice(_STRANGERS)


def counted_elsewhere() -> int:
    """Processes outside a user namespace that count inside it.

    None since Linux 5.14; before it, all of the user's.
    """
    numbers = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
    if numbers >= (5, 14) or os.geteuid() == 0:
        return 0
    return of_this_user()


def of_this_user() -> int:
    """Processes and threads that run as the caller."""
    total = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}").st_uid == os.geteuid():
                    total += len(os.listdir(f"/proc/{entry}/task"))
    return total
