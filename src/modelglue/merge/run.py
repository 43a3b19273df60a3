"""Merge checkpoints as a configuration says: the one call behind `modelglue merge`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelglue.errors import InputError
from modelglue.merge.config.schema import MergeConfig, load_config, parse_config
from modelglue.merge.engine.stream import Progress, execute
from modelglue.merge.plan.merge_plan import MergePlan, make_plan

Mergeable = MergePlan | MergeConfig | Mapping[str, Any] | Path | str
"""Whatever asks for a merge: a plan, a configuration, the same as a mapping, or its YAML file."""


def merge(
    config: Mergeable,
    out: Path | str,
    *,
    threads: int | None = None,
    device: str | None = None,
    allow_nonfinite: bool = False,
    allow_crimes: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Merge checkpoints into a new one.

    Killed or interrupted, the same call goes on where it stopped.

    Args:
        config: a plan, a configuration, the same as a mapping, or the YAML file that holds it.
        out: the folder to make.
        threads: chunks under way at a time; by default one a core.
        device: a torch device for the arithmetic; by default compiled loops on the CPU.
        allow_nonfinite: write NaN and infinity instead of refusing them.
        allow_crimes: merge models of other architectures or settings if only their shapes agree.
        progress: called with (elements written, elements to write).

    Returns:
        `out`.

    Raises:
        ConfigError: the configuration is wrong; all its problems at once.
        CheckpointError, MergeError: a model cannot be used; nothing was written.
        InputError: there is no such device.
    """
    require_device(device)
    merged = execute(
        as_plan(config, allow_crimes=allow_crimes),
        Path(out),
        threads=threads,
        device=device,
        allow_nonfinite=allow_nonfinite,
        progress=progress,
    )
    return merged.path


def as_plan(config: Mergeable, *, allow_crimes: bool = False) -> MergePlan:
    """Whatever asks for a merge, as a plan; the models are opened, no weight is read."""
    if isinstance(config, str | Path):
        config = load_config(Path(config))
    if isinstance(config, Mapping):
        config = parse_config(dict(config))
    return config if isinstance(config, MergePlan) else make_plan(config, allow_crimes=allow_crimes)


def require_device(device: str | None) -> None:
    """Try a torch device before anything is written.

    Raises:
        InputError: it cannot be used.
    """
    if device is None:
        return
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {device!r} cannot be used: {error}") from None
