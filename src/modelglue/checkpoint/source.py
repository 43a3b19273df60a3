"""From what a user writes ("dir", "org/name@rev", "base+adapter") to an open checkpoint."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from modelglue.checkpoint.folder import near
from modelglue.checkpoint.hub import fetch
from modelglue.checkpoint.lora import LoraCheckpoint, open_adapter
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.errors import CheckpointNotFound

_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[^@\s]+))?")


Roots = Path | tuple[Path, ...] | None
"""Where relative paths start: the first of several under which there is such a folder."""


def open_checkpoint(ref: str | Path, *, root: Roots = None) -> Checkpoint:
    """Open a model folder, a model of the Hugging Face Hub, or either with LoRA adapters on it.

    Args:
        ref: "dir", "org/name", "org/name@revision", or "base+adapter" with any of these in both
            places; several adapters may follow each other.
        root: where relative paths start, each part's for itself; by default the current folder.

    Raises:
        CheckpointError: there is no model there, or a broken one.
    """
    text = str(ref)
    if _local(text, root).is_dir():
        return _open_plain(text, root)
    left, plus, right = _split(text, root)
    if not plus:
        return _open_plain(text, root)
    base = open_checkpoint(left, root=root)
    folder, name, ref = _locate(right, root)
    return LoraCheckpoint(base, open_adapter(folder, name=name), ref=f"{base.ref}+{ref}")


def materialise(checkpoint: Checkpoint, folder: Path) -> Path:
    """A plain folder that transformers loads: the checkpoint's own, or `folder`, written now.

    Raises:
        OutputExists: the folder has to be written and is there already.
        OutOfSpace: the disk cannot hold it.
    """
    if not isinstance(checkpoint, LoraCheckpoint):
        return checkpoint.path
    layout = {name: (spec.dtype, spec.shape) for name, spec in checkpoint.tensors.items()}
    with CheckpointWriter(folder, layout) as writer:
        for name in layout:
            start = 0
            for chunk in checkpoint.chunks(name):
                writer.write_bytes(name, chunk, start=start)
                start += len(chunk)
        return writer.commit(config=checkpoint.config, files_from=checkpoint)


def _open_plain(text: str, root: Roots) -> Checkpoint:
    folder, name, ref = _locate(text, root)
    checkpoint = Checkpoint.open(folder)
    checkpoint.name, checkpoint.ref = name, ref
    return checkpoint


def _local(text: str, root: Roots) -> Path:
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # "~nobody"
        path = path.expanduser()
    roots = root if isinstance(root, tuple) else (root or Path(),)
    places = [start / path for start in roots]
    return next((place for place in places if place.exists()), places[0])


def _split(text: str, root: Roots) -> tuple[str, str, str]:
    """At the "+" between base and last adapter; a folder's own name may hold one, too."""
    places = [i for i, character in enumerate(text) if character == "+"][::-1]
    for i in places:
        if _local(text[i + 1 :], root).is_dir():
            return text[:i], "+", text[i + 1 :]
    return text.rpartition("+") if places else (text, "", "")


def _locate(text: str, root: Roots) -> tuple[Path, str, str]:
    """The folder of a model or adapter, its name, and what to call it in a record.

    It is fetched if it is one of the Hub; its record then has the revision that was fetched.
    """
    path = _local(text, root)
    hub = _HUB.fullmatch(text)
    is_path = path.exists() or not hub or _local(text.split("/")[0], root).is_dir()
    if is_path or not hub:
        if not path.exists():
            raise CheckpointNotFound(
                f"{path}: there is no such folder{near(path)}. (A model of the Hub is named "
                "org/name or org/name@revision.)"
            )
        return path, path.name or path.resolve().name, text
    folder = fetch(hub["name"], hub["revision"])
    # The Hub's cache names the folder after the commit.
    return folder, hub["name"].split("/")[1], f"{hub['name']}@{folder.name}"
