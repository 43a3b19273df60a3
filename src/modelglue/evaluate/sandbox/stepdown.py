"""Start a command as nobody in particular, for a caller who is root.  Standard library only.

    python stepdown.py UID STAGE [FOLDER ...] -- COMMAND ...

A sandbox that root starts is still root to the kernel wherever user namespaces don't count: no
limit of processes binds it. The stranger UID, on the other hand, may not enter root's home, where
the interpreter may live. So each FOLDER is first bound to STAGE/0, STAGE/1, … in a mount namespace
of this process alone.
"""

import ctypes
import os
import sys

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000


def main(arguments: list[str]) -> None:
    """Bind, step down, and become the command."""
    end = arguments.index("--")
    (uid, stage, *folders), command = arguments[:end], arguments[end + 1 :]
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int, what: str) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    checked(libc.unshare(_CLONE_NEWNS), "new mount namespace")
    checked(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "private mounts")
    for number, folder in enumerate(folders):
        place = os.path.join(stage, str(number))
        os.mkdir(place)
        bound = libc.mount(os.fsencode(folder), os.fsencode(place), None, _MS_BIND | _MS_REC, None)
        checked(bound, f"bind {folder}")
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
