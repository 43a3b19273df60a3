"""The digest of a checkpoint's content, kept so that bytes are read once.

Fine-tunes of one base share headers and sizes, so nothing less than their bytes identifies them.
The fingerprint is SHA-256 over the sorted tensors' own digests, hence tensors may be digested in
any order and by several threads, by whatever pass reads them anyway.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelglue.checkpoint.reader import Checkpoint

# A file written this recently could change again within one tick of its clock.
_SETTLED = 0.05


class Digesting:
    """Feeds a checkpoint's fingerprint with bytes that are being read anyway.

    Give each tensor's bytes in order with `update`; different tensors may come from different
    threads. What was not given, or not in order, `finish` reads itself.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._stamp = checkpoint.stamp()
        self._cached = _load(self._stamp)
        self._lock = threading.Lock()
        self._partial: dict[str, tuple[Any, int]] = {}
        self._digests: dict[str, str] = {}

    @property
    def needed(self) -> bool:
        """False when the fingerprint is known already, and feeding it is in vain."""
        return self._cached is None

    def update(self, name: str, data: Any, *, start: int) -> None:
        """Take the tensor's bytes from byte `start` on; out of order they are ignored.

        Args:
            name: of the tensor.
            data: anything with the buffer protocol.
            start: the offset within the tensor of the first of these bytes.
        """
        if self._cached is not None:
            return
        view = memoryview(data)
        with self._lock:
            digest, position = self._partial.get(name) or (hashlib.sha256(), 0)
            if start != position or name in self._digests:
                return
            self._partial[name] = (digest, position + view.nbytes)
        # Outside the lock: hashing releases the interpreter, and one thread feeds a tensor.
        digest.update(view)
        if position + view.nbytes == self._checkpoint.spec(name).nbytes:
            with self._lock:
                del self._partial[name]
                self._digests[name] = digest.hexdigest()

    def finish(self) -> str:
        """The fingerprint, after reading what nobody gave; kept for the next time."""
        if self._cached is None:
            self._cached = self._compute()
            if self._stamp is not None:
                _store(self._stamp, self._cached)
        return self._cached

    def _compute(self) -> str:
        total = hashlib.sha256()
        total.update(_canonical(dict(self._checkpoint.config)))
        for name in sorted(self._checkpoint.tensors):
            spec = self._checkpoint.tensors[name]
            digest = self._digests.get(name) or self._digest(name)
            total.update(_canonical([name, spec.dtype, list(spec.shape), digest]))
        return total.hexdigest()

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        for chunk in self._checkpoint.chunks(name):
            digest.update(chunk)
        return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    # ASCII, since a JSON file may hold lone surrogates, which UTF-8 cannot.
    return json.dumps(value, sort_keys=True, ensure_ascii=True).encode()


def stamp(config: Mapping[str, Any], files: Mapping[Path, os.stat_result]) -> str | None:
    """What a model's content is remembered by, or None while its files may still be changing."""
    now = time.time()
    lines = [_canonical(dict(config)).decode()]
    for path, status in sorted(files.items()):
        if now - max(status.st_mtime, status.st_ctime) < _SETTLED:
            return None
        # ctime as well: a copy that keeps the time would go unnoticed without it.
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        lines.append(f"{os.path.realpath(path)!r} {status.st_size} {times} {status.st_ino}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def cache_folder() -> Path:
    """Where fingerprints are kept: `$XDG_CACHE_HOME/modelglue`, by default in `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "modelglue"


def _load(key: str | None) -> str | None:
    if key is None:
        return None
    try:
        text = (cache_folder() / "fingerprints" / key).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else None


def _store(key: str, value: str) -> None:
    # One file a fingerprint, renamed into place: processes cannot disturb each other. A home
    # that cannot be written to costs time at the next run and nothing else.
    folder = cache_folder() / "fingerprints"
    beside = folder / f".{key}.{os.getpid()}.{threading.get_ident()}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        beside.write_text(value + "\n", encoding="ascii")
        os.replace(beside, folder / key)
        return
    with contextlib.suppress(OSError):
        beside.unlink(missing_ok=True)
