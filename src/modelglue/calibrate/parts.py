"""What stands of a computation that may be killed: a checkpoint a finished group, and a journal.

    .OUT.statistics/
      journal.jsonl     first what was asked, then a line a part: its tensors, those of zeros
      00000/ 00001/ …   each a checkpoint, whole before its line is written

They become one checkpoint at the end, so the disk has to hold the statistics twice.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.errors import RunConflict
from modelglue.journal import Journal


class Parts:
    """The finished parts for `out`, owned by this process while it is open.

    Args:
        out: where the whole is to be.
        asked: all that the result depends on, as plain data.

    Raises:
        RunConflict: another process is at work here, or something else was asked before.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any]) -> None:
        self.folder = work_folder(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            held.callback(os.close, _lock(self.folder))
            self._journal = held.enter_context(Journal(self.folder / "journal.jsonl"))
            self._keep(asked)
            self._held = held.pop_all()

    @property
    def tensors(self) -> dict[str, Path]:
        """The tensors that stand: name → the part that holds it."""
        return {name: self.folder / r["part"] for r in self._records for name in r["tensors"]}

    @property
    def zeros(self) -> list[str]:
        """The tensors of them that are all zero."""
        return [name for record in self._records for name in record["zeros"]]

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep a finished group; it is on disk when this returns."""
        part = f"{len(self._records):05d}"
        # A killed process may have left it there without its line in the journal.
        shutil.rmtree(self.folder / part, ignore_errors=True)
        layout = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
        with CheckpointWriter(self.folder / part, layout) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
            writer.commit(config={})
        zeros = [name for name, tensor in tensors.items() if not bool(tensor.any())]
        self._journal.append({"part": part, "tensors": list(tensors), "zeros": zeros})

    def assemble(self, out: Path, order: Iterable[str], config: Mapping[str, Any]) -> None:
        """Make one checkpoint of all parts, its tensors in the given order."""
        places = self.tensors
        opened = {part: Checkpoint.open(part) for part in dict.fromkeys(places.values())}
        sources = {name: opened[places[name]] for name in order if name in places}
        layout = {name: ("F32", source.spec(name).shape) for name, source in sources.items()}
        with CheckpointWriter(out, layout) as writer:
            for name, source in sources.items():
                start = 0
                for chunk in source.chunks(name):
                    writer.write_bytes(name, chunk, start=start)
                    start += len(chunk)
            writer.commit(config=config)

    def remove(self) -> None:
        """Drop everything; the whole stands elsewhere."""
        shutil.rmtree(self.folder)

    def __enter__(self) -> "Parts":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    @property
    def _records(self) -> list[dict[str, Any]]:
        return list(self._journal)[1:]

    def _keep(self, asked: Mapping[str, Any]) -> None:
        standing = next(iter(self._journal), None)
        if standing is None:
            self._journal.append(asked)
        elif standing != asked:
            keys = [key for key in {**standing, **asked} if standing.get(key) != asked.get(key)]
            raise RunConflict(
                f"{self.folder} holds what stands of other statistics ({', '.join(keys)} differ); "
                "choose another output, or delete that folder"
            )


def work_folder(out: Path) -> Path:
    """Where the parts of `out` are kept until it is whole."""
    return out.with_name(f".{out.name}.statistics")


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The kernel lets go of it when the process ends, however it ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunConflict(f"another process is at work in {folder}; wait for it") from None
    return descriptor
