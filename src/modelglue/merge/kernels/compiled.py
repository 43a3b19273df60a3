"""What compiled loops share: how they are compiled, and numbers as they are stored.

Compiled code is kept beside this file, or in the user's cache where that cannot be written; where
neither can, every process compiles anew, which takes seconds.
"""

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

BLOCK = 1024
"""Entries that a loop works on before the next loop takes them: they stay in the nearest cache."""

MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITE = np.uint32(0x7F800000)
ZERO = np.float32(0)
S15, S16 = np.uint32(15), np.uint32(16)


def compiled(function: Any, **options: Any) -> Any:
    """Compile a loop."""
    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it
        return njit(nogil=True, **options)(function)


reduction = partial(compiled, fastmath={"reassoc", "contract"})
quotient = partial(compiled, error_model="numpy")  # without a check for 0 before each division


@intrinsic
def as_float(typing: Any, bits: Any) -> Any:
    """The float32 of 32 bits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), build


@intrinsic
def as_bits(typing: Any, number: Any) -> Any:
    """The 32 bits of a float32."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), build


def number(stored: Any) -> Any:
    """Float32 of an entry: itself, or bfloat16 given as the upper half of its bits."""
    if isinstance(stored, np.uint16):
        return (np.uint32(stored) << S16).view(np.float32)
    return np.float32(stored)


@overload(number, jit_options={"nogil": True})
def _number(stored: Any) -> Any:
    if stored == types.uint16:

        def bits(stored: Any) -> Any:
            return as_float(np.uint32(stored) << S16)

        return bits

    def itself(stored: Any) -> Any:
        return np.float32(stored)

    return itself
