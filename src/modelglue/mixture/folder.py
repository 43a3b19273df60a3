"""A folder that is written whole or not at all, and files copied byte for byte."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelglue.checkpoint.staging import Staging
from modelglue.errors import OutOfSpace, OutputExists
from modelglue.journal import sync_folder

# Where the kernel or the file system can't copy by itself (or not between these two), we do.
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
_PIECE = 1 << 26


@contextmanager
def whole_folder(out: Path, *, nbytes: int) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well.

    On an exception nothing stays; what a killed process left is cleared by the next one.

    Args:
        out: must not be there yet; its parent is made.
        nbytes: what will be written, about; the disk must have room for it.

    Raises:
        OutputExists: `out` is taken.
        OutOfSpace: the disk can't hold it.
    """
    require_absent(out)
    staging = Staging(out)
    try:
        free = shutil.disk_usage(staging.folder).free
        if nbytes > free:
            raise OutOfSpace(
                f"{out} needs {nbytes / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free"
            )
        yield staging.folder
        for folder, _, names in os.walk(staging.folder):
            for name in names:
                _sync_file(Path(folder, name))
            sync_folder(Path(folder))
        require_absent(out)
        staging.rename(out)
    except BaseException:
        staging.remove()
        raise


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
    """Copy files (links followed) into a folder without them; shares blocks where a disk can."""
    target.mkdir(parents=True, exist_ok=True)
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
