"""Files read by position: sizes and JSON with limits, and shared descriptors that close."""

import json
import os
import stat
import threading
import weakref
from pathlib import Path
from typing import Any

from modelglue.errors import CheckpointError, CheckpointNotFound, CorruptCheckpoint

# The safetensors library refuses longer headers; no honest JSON beside a model is longer.
LARGEST_JSON = 100_000_000


class Descriptors:
    """File descriptors opened when first read from, shared by all threads.

    Each file must still be the one whose header was read: same inode, size and time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Path, int] = {}
        self._known: dict[Path, os.stat_result] = {}
        # Closes with the last reference to us, also when nobody called close().
        self._finalizer = weakref.finalize(self, _close_all, self._open)

    def register(self, path: Path, status: os.stat_result) -> None:
        """Remember what a file looked like when its header was read."""
        self._known[path] = status

    def status(self, path: Path) -> os.stat_result:
        """What the file looked like when its header was read."""
        return self._known[path]

    def read_into(self, path: Path, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the file's bytes from `offset` on; any number of threads may.

        Raises:
            CorruptCheckpoint: the file ends before, changed, or cannot be read.
        """
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = self._opened(path)
        read_exactly(descriptor, path, buffer, offset)

    def close(self) -> None:
        """Close what is open. Reading again opens it again."""
        with self._lock:
            _close_all(self._open)

    def _opened(self, path: Path) -> int:
        with self._lock:
            if path not in self._open:
                descriptor = open_regular(path)
                now, known = os.fstat(descriptor), self._known[path]
                if _identity(now) != _identity(known):
                    os.close(descriptor)
                    raise CorruptCheckpoint(
                        f"{path}: the file changed after it was opened. Open the model again."
                    )
                self._open[path] = descriptor
            return self._open[path]


def _close_all(descriptors: dict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_regular(path: Path) -> int:
    """A descriptor for reading; only for a regular file, so that a pipe cannot make us wait.

    Raises:
        CheckpointNotFound: there is no such file.
        CheckpointError: it is not a file, or may not be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CheckpointNotFound(f"{path}: there is no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the name
        raise CheckpointError(f"{str(path)!r} cannot be opened: {error}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptCheckpoint(f"{path} is not a regular file.")
    return descriptor


def read_exactly(descriptor: int, path: Path, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from `offset` on, or say where the file ended."""
    done, wanted = 0, len(buffer)
    while done < wanted:
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise CorruptCheckpoint(
                f"{path}: reading at byte {offset + done:,} failed: {error}."
            ) from error
        if count == 0:
            raise CorruptCheckpoint(
                f"{path}: the file ends at byte {offset + done:,}, before byte "
                f"{offset + wanted:,} that was to be read. Fetch it again."
            )
        done += count


def read_small(path: Path, *, limit: int = LARGEST_JSON) -> bytes:
    """A whole file that must not be larger than `limit`.

    Raises:
        CheckpointError: it is missing, too large or unreadable.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CorruptCheckpoint(f"{path}: {size:,} bytes; at most {limit:,} are sensible.")
        data = bytearray(size)
        read_exactly(descriptor, path, memoryview(data), 0)
    finally:
        os.close(descriptor)
    return bytes(data)


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it is missing, too large, not UTF-8, not JSON, or not an object.
    """
    return parse_json_object(read_small(path), path, what="the file")


def parse_json_object(data: bytes, path: Path, *, what: str) -> dict[str, Any]:
    """Strict JSON: UTF-8, one object, no key twice, no NaN outside of numbers.

    Raises:
        CorruptCheckpoint: it is anything else; the message names `path` and `what`.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise CorruptCheckpoint(
            f"{path}: {what} is not UTF-8 (byte {error.start:,}). Fetch the file again."
        ) from None
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CorruptCheckpoint(
            f"{path}: {what} is not valid JSON: {problem[:200]}. Fetch the file again."
        ) from None
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{path}: {what} holds no JSON object. Fetch the file again.")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return found
