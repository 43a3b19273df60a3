"""How the kernel counts processes against RLIMIT_NPROC."""

import contextlib
import os
import platform

from modelglue.evaluate.sandbox.inside.confine import STRANGER

__all__ = ["STRANGER", "counted_elsewhere", "of_this_user"]


def counted_elsewhere() -> int:
    """Processes outside a user namespace that count inside it.

    None since Linux 5.14; before it, all of the user's.
    """
    major, minor = (int(part) for part in platform.release().split(".")[:2])
    if (major, minor) >= (5, 14) or os.geteuid() == 0:
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
