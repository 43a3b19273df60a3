"""From what a user writes ("dir", "org/name@rev", "base+adapter") to an open checkpoint."""

from __future__ import annotations

from pathlib import Path

from modelglue.checkpoint.reader import Checkpoint


def open_checkpoint(ref: str | Path, *, root: Path | None = None) -> Checkpoint:
    """Open a model folder; `root` is where a relative path starts.

    Raises:
        CheckpointError: there is no model there, or a broken one.
    """
    return Checkpoint.open((root or Path()) / Path(ref).expanduser())
