"""The hidden folder in which an output grows until it is whole.

`.name.XXXXXXXX.partial` stands beside the target, held by a lock that the system drops with the
process that has it. A folder that nobody holds is the rest of a killed process, and the next
writer for the same target removes it.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from pathlib import Path

from modelglue.journal import sync_folder


class Staging:
    """A folder of our own beside `target`; `rename` makes it the target, `remove` drops it."""

    def __init__(self, target: Path) -> None:
        parent = target.absolute().parent
        # Parents that we made go again if nothing comes of it.
        self._made = [p for p in (parent, *parent.parents) if not p.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target)
        while True:
            folder = parent / f".{target.name}.{secrets.token_hex(4)}.partial"
            folder.mkdir()
            lock = _lock(folder)
            # None: another writer took the folder for abandoned before we could lock it.
            if lock is not None:
                self.folder, self._lock = folder, lock
                return

    def rename(self, target: Path) -> None:
        """Give the folder its name and make that durable. It must not be taken."""
        if os.path.lexists(target):
            raise FileExistsError(17, "exists", str(target))
        os.rename(self.folder, target)
        sync_folder(target.absolute().parent)
        os.close(self._lock)

    def remove(self) -> None:
        """Drop the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        with contextlib.suppress(OSError):  # somebody else may use them by now
            for parent in self._made:
                parent.rmdir()


def remove_abandoned(target: Path) -> None:
    """Remove what killed writers for `target` left beside it."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.partial")
    for path in target.absolute().parent.iterdir():
        if pattern.fullmatch(path.name):
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Hold the folder; None when another process holds it, or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(folder).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
