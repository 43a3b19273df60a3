"""The result of a chunk, in the dtype that the output has."""

from typing import Any

import numpy as np

from modelglue.merge.arrays import Array
from modelglue.merge.engine.reading import Workspace

_STORED: dict[str, Any] = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def encode(merged: Array, dtype: str, workspace: Workspace) -> tuple[np.ndarray, int]:
    """Cast [k] float32 once, and count what is NaN or infinite after it.

    Args:
        merged: of numpy or torch.
        dtype: as safetensors calls it.
        workspace: for the result, which the next call overwrites.

    Returns:
        [k] ready to be written (bfloat16 as uint16), and the count.
    """
    from modelglue.merge.kernels import loops

    if not isinstance(merged, np.ndarray):
        merged = merged.cpu().numpy()
    if dtype == "BF16":
        bits = workspace.array("out", merged.shape, np.uint16)
        return bits, int(loops.encode(merged, bits))
    with np.errstate(over="ignore"):
        cast = merged.astype(_STORED[dtype], copy=False)
    if dtype == "F32":
        return cast, int(loops.count_nonfinite(merged))
    return cast, int(np.count_nonzero(~np.isfinite(cast)))
