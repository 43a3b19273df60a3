"""Which of the two implementations a chunk takes."""

from functools import cache
from importlib import import_module
from types import ModuleType

import numpy as np

from modelglue.merge.chunk import Chunk


def backend(chunk: Chunk) -> ModuleType:
    """`cpu` for numpy arrays, `device` for torch tensors; neither is imported without need."""
    return _module("cpu" if isinstance(chunk.models, np.ndarray) else "device")


@cache
def _module(name: str) -> ModuleType:
    return import_module(f"modelglue.merge.kernels.{name}")
