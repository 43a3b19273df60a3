"""The hidden folder in which an output grows until it is whole.

`.name.XXXXXXXX.partial` stands beside the target, held by a lock that the system drops with the
process that has it. A folder that nobody holds is the rest of a killed process: the next writer
for the same target goes on in it if it is told to make the very same thing, and removes it
otherwise.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from pathlib import Path

from modelglue.journal import sync_folder

PURPOSE = ".purpose"
"""The file in which a folder says what it is to become."""


class Staging:
    """A folder of our own beside `target`.

    `rename` makes it the target, `remove` drops it, `keep` leaves it for the next one.

    Args:
        target: where the output shall stand.
        purpose: what identifies the output; a folder that was left behind for the same purpose is
            taken over. None: always a new folder.

    Attributes:
        folder: to write into.
        taken_over: whether it holds what an earlier process left.
    """

    def __init__(self, target: Path, *, purpose: str | None = None) -> None:
        parent = target.absolute().parent
        # Parents that we made go again if nothing comes of it.
        self._made = [p for p in (parent, *parent.parents) if not p.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        found = _abandoned(target, purpose)
        self.taken_over = found is not None
        while found is None:
            folder = parent / f".{target.name}.{secrets.token_hex(4)}.partial"
            folder.mkdir()
            lock = _lock(folder)
            # None: another writer took the folder for abandoned before we could lock it.
            if lock is not None:
                if purpose is not None:
                    (folder / PURPOSE).write_text(purpose, encoding="utf-8")
                found = folder, lock
        self.folder, self._lock = found

    def rename(self, target: Path) -> None:
        """Give the folder its name and make that durable. It must not be taken."""
        if os.path.lexists(target):
            raise FileExistsError(17, "exists", str(target))
        (self.folder / PURPOSE).unlink(missing_ok=True)
        os.rename(self.folder, target)
        sync_folder(target.absolute().parent)
        os.close(self._lock)

    def keep(self) -> None:
        """Leave the folder as it is, for a writer of the same purpose."""
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
    _abandoned(target, None)


def _abandoned(target: Path, purpose: str | None) -> tuple[Path, int] | None:
    """A folder that was left behind for this purpose, now ours; all others are removed."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.partial")
    found = None
    for path in sorted(target.absolute().parent.iterdir()):
        lock = _lock(path) if pattern.fullmatch(path.name) else None
        if lock is None:
            continue
        if found is None and purpose is not None and _purpose(path) == purpose:
            found = path, lock
        else:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    return found


def _purpose(folder: Path) -> str | None:
    try:
        return (folder / PURPOSE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


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
