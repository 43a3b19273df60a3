"""A model folder that appears whole or not at all.

The layout is known first, so headers are written and space is taken at once, and every tensor has
its final place: rows may then come in any order and from any thread. Work goes on in a hidden
folder beside the target; `commit` makes it durable and renames it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from modelglue.checkpoint.companions import companions
from modelglue.checkpoint.coverage import Coverage
from modelglue.checkpoint.durable import FINISHED, Durable
from modelglue.checkpoint.layout import Shard, plan_shards
from modelglue.checkpoint.output_file import PAGE, OutputFile
from modelglue.checkpoint.reader import Checkpoint, tensor_bytes
from modelglue.checkpoint.spec import TensorSpec, dtype_name
from modelglue.checkpoint.staging import PURPOSE, Staging
from modelglue.errors import CheckpointError, OutOfSpace, OutputExists, RunError
from modelglue.journal import sync_folder

if TYPE_CHECKING:
    import torch

_OUTSIDE = (KeyboardInterrupt, SystemExit, CheckpointError, OSError, RunError, MemoryError)


class CheckpointWriter:
    """Writes one checkpoint; a context manager that leaves nothing behind unless committed.

    Args:
        out: the folder to make. It must not be there.
        layout: name → (dtype as safetensors calls it, shape), in the order to be stored.
        max_shard_bytes: shards are planned as transformers does, 5 GB each.
        metadata: of every file's header; {"format": "pt"} is always in it.
        purpose: what identifies the output. With it, a writer that was killed or interrupted
            leaves its work behind, and the next one of the same purpose goes on from there: see
            `finished`.

    Attributes:
        finished: names of tensors that an earlier writer of the same purpose finished.

    Raises:
        OutputExists: `out` is there already.
        OutOfSpace: the disk cannot hold the checkpoint.
    """

    def __init__(
        self,
        out: str | Path,
        layout: Mapping[str, tuple[str, tuple[int, ...]]],
        *,
        max_shard_bytes: int = 5_000_000_000,
        metadata: Mapping[str, str] | None = None,
        purpose: str | None = None,
    ) -> None:
        self.out = Path(out)
        self.finished: frozenset[str] = frozenset()
        self._purpose = purpose
        self._durable: Durable | None = None
        self._again: set[str] = set()
        self._shards = plan_shards(layout, max_shard_bytes, {"format": "pt", **(metadata or {})})
        self._coverage = Coverage({name: spec.nbytes for name, spec in self._specs()})
        self._places: dict[str, tuple[OutputFile, TensorSpec]] = {}
        self._files: list[OutputFile] = []
        self._staging: Staging | None = None
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """What the weights will take on disk, headers included."""
        return sum(shard.nbytes for shard in self._shards)

    def __enter__(self) -> Self:
        if os.path.lexists(self.out):
            self._refuse_existing()
        self._staging = Staging(self.out, purpose=self._purpose)
        try:
            if not (self._staging.taken_over and self._reopen(self._staging.folder)):
                self._preallocate(self._staging.folder)
            if self._purpose is not None:
                self._go_on(self._staging.folder)
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Stopped from outside, not by anything wrong with the work: it may go on later.
        stopped = isinstance(error, _OUTSIDE)
        # A sync that failed once may succeed the next time, with the bytes lost: no more of them.
        flush = not isinstance(error, OSError)
        self._abandon(keep=self._purpose is not None and stopped, flush=flush)

    def write(self, name: str, tensor: torch.Tensor, *, start_row: int = 0) -> None:
        """Write rows of a tensor (all of them, or some from `start_row` on), from any thread.

        Args:
            name: of the tensor in the layout.
            tensor: [rows, *shape[1:]] in the layout's dtype.
            start_row: where along dimension 0 the first of the rows belongs.
        """
        _, spec = self._place(name)
        dtype = dtype_name(tensor.dtype)
        if dtype != spec.dtype:
            raise ValueError(f"{name}: {dtype} was given, the layout says {spec.dtype}")
        if tuple(tensor.shape[1:]) != spec.shape[1:] or tensor.dim() != len(spec.shape):
            raise ValueError(
                f"{name}: rows of shape {tuple(tensor.shape)} do not fit into {spec.shape}"
            )
        dense = tensor.detach().cpu().contiguous()
        self.write_bytes(name, tensor_bytes(dense), start=start_row * spec.row_nbytes)

    def phase(self, name: str, start: int = 0) -> int:
        """Where in a page the tensor's byte `start` lies: bytes that lie so in memory go faster."""
        _, spec = self._place(name)
        return (spec.offset + start) % PAGE

    def write_bytes(self, name: str, data: memoryview | bytes, *, start: int = 0) -> None:
        """Write the tensor's bytes from byte `start` on, from any thread."""
        file, spec = self._place(name)
        view = memoryview(data).cast("B")
        end = start + len(view)
        if start < 0 or end > spec.nbytes:
            raise ValueError(f"{name}: bytes {start} to {end} lie outside of its {spec.nbytes}")
        self._write(file, view, spec.offset + start)
        # Only now: what failed to be written is still missing.
        whole = self._coverage.add(name, start, end)
        if self._durable is not None:
            if whole and name not in self._again:
                self._durable.finish(name)
            self._durable.wrote(len(view))

    def again(self, name: str) -> None:
        """Keep a tensor, some of which is still to be written, out of a later writer's `finished`.

        For one of which there is more to tell than its bytes.
        """
        self._again.add(name)

    def commit(
        self,
        *,
        config: Mapping[str, Any],
        files_from: Checkpoint | Path | None = None,
        card: str | None = None,
        extra: Mapping[str, str | bytes] | None = None,
    ) -> Path:
        """Make the checkpoint durable and give it its name.

        Args:
            config: for `config.json`.
            files_from: a checkpoint or model folder whose tokenizer files, chat template and
                generation configuration are copied.
            card: the text of `README.md`.
            extra: further files by name; they replace copied ones.

        Returns:
            The finished folder.

        Raises:
            ValueError: a byte of a tensor was not written.
            OutputExists: another process made `out` in the meantime.
            OutOfSpace: the disk is full.
        """
        if self._staging is None:
            raise ValueError("the writer is not open: use it in a with statement, commit once")
        missing = self._coverage.missing()
        if missing:
            raise ValueError(f"cannot commit {self.out}: {missing}")
        folder = self._staging.folder
        try:
            if self._durable is not None:
                self._durable.halt()
            for file in self._files:
                file.sync()
            for name, data in self._beside(config, files_from, card, extra).items():
                _write_durably(folder / name, data)
            if self._durable is not None:
                self._durable.remove()
                self._durable = None
            for inner in {path.parent for path in folder.rglob("*")}:
                sync_folder(inner)
        except OSError as error:
            self._raise(error)
        self._close()
        try:
            self._staging.rename(self.out)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                self._refuse_existing()
            self._raise(error)
        self._staging = None
        return self.out

    def _specs(self) -> list[tuple[str, TensorSpec]]:
        return [(spec.name, spec) for shard in self._shards for spec in shard.tensors]

    def _place(self, name: str) -> tuple[OutputFile, TensorSpec]:
        if self._staging is None:
            raise ValueError("the writer is not open: write inside its with statement")
        if name not in self._places:
            raise ValueError(f"{name} is not in the layout")
        return self._places[name]

    def _preallocate(self, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if self.nbytes > free:
            raise OutOfSpace(
                f"{self.out} will take {self.nbytes:,} bytes, and {folder.parent} has {free:,} "
                "free. Make room or write elsewhere."
            )
        try:
            for shard in self._shards:
                file = OutputFile(folder / shard.name, create=shard.nbytes)
                self._files.append(file)
                self._write(file, memoryview(shard.header), 0)
                self._places.update({spec.name: (file, spec) for spec in shard.tensors})
        except OSError as error:
            self._raise(error)

    def _reopen(self, folder: Path) -> bool:
        """Open what an earlier writer left; False, with the folder emptied, if it is not right."""
        try:
            for shard in self._shards:
                file = OutputFile(folder / shard.name)
                self._files.append(file)
                if file.read(len(shard.header)) != shard.header or file.nbytes != shard.nbytes:
                    raise FileNotFoundError(errno.ENOENT, "half-made", shard.name)
                self._places.update({spec.name: (file, spec) for spec in shard.tensors})
        except OSError:
            self._close()
            _clear(folder, keep={PURPOSE})
            return False
        # A commit that was cut short left files beside the weights; they may be others by now.
        _clear(folder, keep={PURPOSE, FINISHED, *(shard.name for shard in self._shards)})
        return True

    def _go_on(self, folder: Path) -> None:
        self._durable = Durable(folder, self._sync)
        self.finished = self._durable.finished & self._places.keys()
        for name in self.finished:
            self._coverage.add(name, 0, self._places[name][1].nbytes)

    def _sync(self) -> None:
        for file in self._files:
            file.sync(data_only=True)

    def _write(self, file: OutputFile, view: memoryview, offset: int) -> None:
        try:
            file.write(view, offset)
        except OSError as error:
            self._raise(error)

    def _beside(
        self,
        config: Mapping[str, Any],
        files_from: Checkpoint | Path | None,
        card: str | None,
        extra: Mapping[str, str | bytes] | None,
    ) -> dict[str, str | bytes]:
        files: dict[str, str | bytes] = {}
        if files_from is not None:
            folders = files_from.folders if isinstance(files_from, Checkpoint) else (files_from,)
            for source in reversed(folders):
                files.update(companions(source, code="auto_map" in config))
        if len(self._shards) > 1:
            files["model.safetensors.index.json"] = _json(_index(self._shards))
        if card is not None:
            files["README.md"] = card
        files.update(extra or {})
        # Last, so that even the hidden folder is no model before everything else is in it.
        files.pop("config.json", None)
        files["config.json"] = _json(dict(config))
        return files

    def _refuse_existing(self) -> NoReturn:
        raise OutputExists(f"{self.out} is there already. Remove it or choose another name.")

    def _raise(self, error: OSError) -> NoReturn:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            kept = "Nothing was left behind."
            if self._durable is not None and self._staging is not None:
                folder = self._staging.folder
                kept = (
                    f"What was done is kept in {folder}: make room and give the same command "
                    "again, or remove that folder."
                )
            raise OutOfSpace(f"{self.out}: the disk is full ({error.strerror}). {kept}") from error
        raise error

    def _close(self) -> None:
        with self._lock:
            self._places = {}
            while self._files:
                self._files.pop().close()

    def _abandon(self, *, keep: bool = False, flush: bool = False) -> None:
        durable, self._durable = self._durable, None
        staging, self._staging = self._staging, None
        try:
            if durable is not None:
                durable.close(flush=keep and flush)
        finally:
            self._close()
            if staging is not None:
                if keep:
                    staging.keep()
                else:
                    staging.remove()


def _clear(folder: Path, *, keep: Collection[str]) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in keep:
            path.unlink()


def _write_durably(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())


def _index(shards: list[Shard]) -> dict[str, Any]:
    specs = [(shard.name, spec) for shard in shards for spec in shard.tensors]
    return {
        "metadata": {
            "total_parameters": sum(spec.numel for _, spec in specs),
            "total_size": sum(spec.nbytes for _, spec in specs),
        },
        "weight_map": {spec.name: shard for shard, spec in sorted(specs, key=lambda s: s[1].name)},
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
