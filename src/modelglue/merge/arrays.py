"""Arrays of numpy and of torch, told apart without importing torch.

A method written with what both libraries share (`where`, `abs`, `sqrt`, `sign`, `sum(axis=…)`)
runs on either: on numpy without torch's start-up, and on torch on whatever device.
"""

from types import ModuleType
from typing import Any

import numpy as np

Array = Any
"""A numpy array or a torch tensor."""


def namespace(array: Array) -> ModuleType:
    """The library that `array` belongs to: `numpy` or `torch`."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def like(values: Any, array: Array) -> Array:
    """`values` as a float32 array of the same library, on the same device."""
    if isinstance(array, np.ndarray):
        return np.asarray(values, dtype=np.float32)
    import torch

    return torch.as_tensor(values, dtype=torch.float32, device=array.device)


def floats(array: Array) -> Array:
    """The values as float32. A numpy array of uint16 holds the bits of bfloat16."""
    if not isinstance(array, np.ndarray):
        return array.float()
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32, copy=False)
