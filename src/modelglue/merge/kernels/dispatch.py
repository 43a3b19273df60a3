"""Which of the two implementations a chunk takes."""

from types import ModuleType

import numpy as np

from modelglue.merge.chunk import Chunk


def backend(chunk: Chunk) -> ModuleType:
    """`cpu` for numpy arrays, `device` for torch tensors; neither is imported without need."""
    if isinstance(chunk.models, np.ndarray):
        from modelglue.merge.kernels import cpu

        return cpu
    from modelglue.merge.kernels import device

    return device
