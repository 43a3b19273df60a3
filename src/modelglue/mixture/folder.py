"""A folder that is written whole or not at all, and files copied byte for byte."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelglue.errors import OutOfSpace, OutputExists
from modelglue.journal import sync_folder

# Where the kernel or the file system can't copy by itself (or not between these two), we do.
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
_PIECE = 1 << 26


@contextmanager
def whole_folder(out: Path, *, nbytes: int) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well.

    On an exception nothing stays. What a killed process left beside `out` is cleared away.

    Args:
        out: must not be there yet; its parent is made.
        nbytes: what will be written, about; the disk must have room for it.

    Raises:
        OutputExists: `out` is taken.
        OutOfSpace: the disk can't hold it.
    """
    require_absent(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(out)
    free = shutil.disk_usage(out.parent).free
    if nbytes > free:
        raise OutOfSpace(
            f"{out} needs {nbytes / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free"
        )
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    beside.mkdir()
    try:
        yield beside
        for folder, _, names in os.walk(beside):
            for name in names:
                _sync_file(Path(folder, name))
            sync_folder(Path(folder))
        require_absent(out)
        beside.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_absent(out: Path) -> None:
    """Raise `OutputExists` if there is anything at `out`."""
    if out.exists() or out.is_symlink():
        raise OutputExists(f"{out} is there already; remove it or choose another place")


def model_files(folder: Path) -> list[Path]:
    """The files that make up a model folder, relative to it.

    All that lie in the folder itself, and the chat templates that have a folder of their own. Other
    folders (training states, version control, other formats) are no part of the checkpoint.
    """
    files = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    files += (folder / "additional_chat_templates").glob("*.jinja")
    return sorted(path.relative_to(folder) for path in files)


def copy_files(files: Iterable[Path], source: Path, target: Path) -> None:
    """Copy files (links followed) into a new folder; shares the blocks where a disk can."""
    target.mkdir(parents=True)
    for name in files:
        (target / name).parent.mkdir(exist_ok=True)
        _copy(source / name, target / name)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            while os.copy_file_range(reader.fileno(), writer.fileno(), _PIECE):
                pass
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            # Both descriptors stand where the kernel stopped.
            while piece := os.read(reader.fileno(), _PIECE):
                writer.write(piece)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _clear_leftovers(out: Path) -> None:
    for path in out.parent.glob(f".{out.name}.*.tmp"):
        owner = path.name[len(out.name) + 2 : -len(".tmp")]
        if owner.isdigit() and not _runs(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
