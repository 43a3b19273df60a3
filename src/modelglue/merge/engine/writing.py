"""The result of a chunk, in the dtype that the output has."""

import numpy as np

from modelglue.merge.arrays import Array
from modelglue.merge.engine.held import STORED
from modelglue.merge.engine.reading import Workspace


def encode(
    merged: Array, dtype: str, workspace: Workspace, *, phase: int = 0
) -> tuple[np.ndarray, int]:
    """Cast [k] float32 once, and count what is NaN or infinite after it.

    Args:
        merged: of numpy or torch.
        dtype: as safetensors calls it.
        workspace: for the result, which the next call overwrites.
        phase: how many bytes into a page the result shall begin.

    Returns:
        [k] ready to be written (bfloat16 as uint16), and the count.
    """
    from modelglue.merge.kernels import loops

    if not isinstance(merged, np.ndarray):
        merged = merged.cpu().numpy()
    stored = workspace.array("out", merged.shape, STORED[dtype], phase=phase)
    if dtype == "BF16":
        return stored, int(loops.encode(merged, stored))
    with np.errstate(over="ignore"):
        stored[:] = merged
    if dtype == "F32":
        return stored, int(loops.count_nonfinite(stored))
    return stored, int(np.count_nonzero(~np.isfinite(stored)))
