"""A file whose bytes come in any order and from any thread, written past the page cache.

Copying gigabytes into the page cache and from there to the disk costs more processor time than most
merges, and pushes out of the cache what is still to be read. So whole pages go to the disk
directly (`O_DIRECT`) where the file system can do that and the bytes lie in memory as they shall
lie in the file; the ends of a range, what is small, and everything on other systems is written as
usual. No page is ever written both ways, so the two don't get into each other's way.
"""

import contextlib
import errno
import os
from pathlib import Path

import numpy as np

PAGE = 4096
"""Bytes to which places in the file and in memory must be aligned alike to be written directly."""

_WORTHWHILE = 256 << 10
_DIRECT: int = getattr(os, "O_DIRECT", 0)


class OutputFile:
    """A file of a known size, open for writing.

    Args:
        path: where.
        create: how many bytes it shall have, all taken at once; None opens what is there.
    """

    def __init__(self, path: Path, *, create: int | None = None) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC
        self._direct: int | None = None
        self.descriptor = os.open(
            path, flags if create is None else flags | os.O_CREAT | os.O_EXCL, 0o666
        )
        try:
            if create is not None:
                _allocate(self.descriptor, create)
        except OSError:
            os.close(self.descriptor)
            raise
        if _DIRECT:
            with contextlib.suppress(OSError):
                self._direct = os.open(path, flags | _DIRECT)

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes to their place."""
        start = -offset % PAGE
        stop = start + (len(view) - start) // PAGE * PAGE
        if stop - start < _WORTHWHILE or self._direct is None or not _alike(view, offset):
            self._cached(view, offset)
            return
        self._cached(view[:start], offset)
        done = start + self._directly(view[start:stop], offset + start)
        self._cached(view[done:], offset + done)

    def read(self, nbytes: int) -> bytes:
        """The first bytes."""
        return os.pread(self.descriptor, nbytes, 0)

    @property
    def nbytes(self) -> int:
        """How large it is."""
        return os.fstat(self.descriptor).st_size

    def sync(self, *, data_only: bool = False) -> None:
        """Carry all that was written to the disk."""
        (os.fdatasync if data_only else os.fsync)(self.descriptor)

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def _directly(self, view: memoryview, offset: int) -> int:
        """Write whole pages; how many bytes were written, where the file system stops doing so."""
        done = 0
        while done < len(view) and done % PAGE == 0 and self._direct is not None:
            try:
                done += os.pwrite(self._direct, view[done:], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break
        return done

    def _cached(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self.descriptor, view[done:], offset + done)


def _alike(view: memoryview, offset: int) -> bool:
    """Whether memory and file are aligned alike."""
    return (np.frombuffer(view, np.uint8).ctypes.data - offset) % PAGE == 0


def _allocate(descriptor: int, nbytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, nbytes)
