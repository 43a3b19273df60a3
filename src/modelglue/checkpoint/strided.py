"""Reading a range of a tensor that is not stored row after row: a transposed or cut `.bin` weight.

What is read is in proportion to what is asked for, so that reading a tensor chunk by chunk takes
time linear in its size and memory for a chunk.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Read = Callable[[memoryview, int], None]
"""(buffer, byte): fills the buffer with the storage's bytes from there on."""

_AT_ONCE = 1 << 14
_WASTE = 4


def read_strided(
    read: Read, out: np.ndarray, start: int, shape: Sequence[int], strides: Sequence[int]
) -> None:
    """Fill `out` with the elements from number `start` on, counted row after row.

    Args:
        read: reads the storage.
        out: [n] of any dtype of the right size.
        start: the first element.
        shape, strides: of the whole tensor, in elements.
    """
    _range(read, out, start, 0, tuple(shape), tuple(strides))


def _range(
    read: Read,
    out: np.ndarray,
    start: int,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> None:
    if not len(out):
        return
    width = math.prod(shape[1:])
    first, inner = divmod(start, width)
    if len(shape) > 1 and inner + len(out) <= width and len(out) < width:
        _range(read, out, inner, offset + first * strides[0], shape[1:], strides[1:])
        return
    head = min(-start % width, len(out))
    whole = (len(out) - head) // width
    if head:
        _range(read, out[:head], start, offset, shape, strides)
    if whole:
        block = out[head : head + whole * width].reshape(whole, *shape[1:])
        row = (start + head) // width
        _block(read, block, offset + row * strides[0], strides)
    done = head + whole * width
    _range(read, out[done:], start + done, offset, shape, strides)


def _block(read: Read, out: np.ndarray, offset: int, strides: tuple[int, ...]) -> None:
    """Fill a whole block: at once where little lies between its elements, else part by part."""
    reach = 1 + sum((n - 1) * step for n, step in zip(out.shape, strides, strict=True))
    if reach <= max(_WASTE * out.size, _AT_ONCE // out.itemsize) or out.size == 1:
        storage = np.empty(reach, out.dtype)
        read(storage.view(np.uint8).data, offset * out.itemsize)
        steps = [step * out.itemsize for step in strides]
        out[...] = np.lib.stride_tricks.as_strided(storage, out.shape, steps, writeable=False)
        return
    spread = max(range(out.ndim), key=lambda i: (out.shape[i] > 1) * strides[i])
    for index in range(out.shape[spread]):
        part = np.moveaxis(out, spread, 0)[index, ...]
        _block(
            read, part, offset + index * strides[spread], strides[:spread] + strides[spread + 1 :]
        )
