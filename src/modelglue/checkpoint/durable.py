"""Which tensors of a growing checkpoint are safe on the disk, so that a killed writer can go on.

What was written is carried to the disk in the background every so many bytes, which also keeps the
disk busy while work goes on; only then are finished tensors noted in a small file beside it.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

FINISHED = ".finished"
"""The file: one tensor's name a line; a torn last line is dropped."""

SYNC_BYTES = 256 << 20
"""Bytes written between two syncs; what a kill costs at most."""


class Durable:
    """Notes finished tensors once their bytes are on the disk. Thread-safe.

    Args:
        folder: where the note lies.
        sync: carries all that was written to the disk.
    """

    def __init__(self, folder: Path, sync: Callable[[], None]) -> None:
        self._path = folder / FINISHED
        self._sync = sync
        lines = _lines(self._path)
        self.finished = frozenset(line[:-1].decode() for line in lines)
        if self._path.exists():  # else the next name would go on in a torn line
            os.truncate(self._path, sum(map(len, lines)))
        self._file = self._path.open("a", encoding="utf-8")
        self._condition = threading.Condition()
        self._pending: list[str] = []
        self._unsynced = 0
        self._stopped = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def wrote(self, nbytes: int) -> None:
        """Say that so many bytes were written.

        Raises:
            OSError: what was written before could not be carried to the disk.
        """
        with self._condition:
            if self._error is not None:
                raise self._error
            self._unsynced += nbytes
            if self._unsynced >= SYNC_BYTES:
                self._condition.notify()

    def finish(self, name: str) -> None:
        """Say that all bytes of a tensor were written."""
        with self._condition:
            self._pending.append(name)

    def halt(self) -> None:
        """End the work in the background; what is pending stays so.

        Raises:
            OSError: a sync failed. The system tells that once: another sync would succeed.
        """
        with self._condition:
            self._stopped = True
            self._condition.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self, *, flush: bool) -> None:
        """End; with `flush`, what is pending is synced and noted first, if that can be done."""
        try:
            # What cannot be synced is not noted, and will be made again.
            with contextlib.suppress(OSError):
                self.halt()
                if flush:
                    self._note()
        finally:
            with contextlib.suppress(OSError):  # a full disk has no room for the rest of the note
                self._file.close()

    def remove(self) -> None:
        """Drop the note: the checkpoint is whole."""
        self._path.unlink(missing_ok=True)
        self._file.close()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopped or self._unsynced >= SYNC_BYTES)
                if self._stopped:
                    return
            try:
                self._note()
            except OSError as error:  # `halt` says so
                self._error = error
                return

    def _note(self) -> None:
        with self._condition:
            names, self._pending = self._pending, []
            self._unsynced = 0
        self._sync()
        if names:
            self._file.writelines(name + "\n" for name in names)
            self._file.flush()
            os.fsync(self._file.fileno())


def _lines(path: Path) -> list[bytes]:
    """The whole lines; none where the file is no text."""
    try:
        content = path.read_bytes()
        content.decode()
    except (OSError, ValueError):
        return []
    return [line + b"\n" for line in content.split(b"\n")[:-1]]
