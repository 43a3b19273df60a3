"""A folder that is written whole or not at all, and files copied byte for byte."""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from mmap import mmap
from pathlib import Path

from modelglue.checkpoint.output_file import OutputFile
from modelglue.checkpoint.staging import Staging
from modelglue.errors import OutOfSpace, OutputExists
from modelglue.journal import sync_folder

# Linux's FICLONE.
_CLONE = 0x40049409
# Memory of a few threads, aligned to pages as `OutputFile` likes it.
_PIECE, _HANDS = 8 << 20, 4


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
    with source.open("rb") as reader:
        if _share_blocks(reader.fileno(), target):
            return
        size = os.fstat(reader.fileno()).st_size
        with closing(OutputFile(target, create=size)) as output:
            starts = iter(range(0, size, _PIECE))  # each is taken by one thread

            def work() -> None:
                with closing(mmap(-1, _PIECE)) as buffer, memoryview(buffer) as room:
                    for start in starts:
                        with room[: min(_PIECE, size - start)] as piece:
                            if os.preadv(reader.fileno(), [piece], start) < len(piece):
                                raise OSError(f"{source} became shorter while it was copied")
                            output.write(piece, start)

            hands = min(_HANDS, max(1, size // _PIECE))
            with ThreadPoolExecutor(hands) as crew:
                for done in [crew.submit(work) for _ in range(hands)]:
                    done.result()


def _share_blocks(source: int, target: Path) -> bool:
    """Make `target` a copy that shares its blocks with an open file, where the disk can do that."""
    with target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _CLONE, source)
        except OSError:
            target.unlink()
            return False
    return True


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
