"""Dot products between the columns of the same matrix in several models, a few rows at a time.

The chunks stand transposed, [models, columns, rows]: then the Gram matrices of all columns are one
batched matrix product. Against multiplying the models elementwise that is even at twelve models
and 2× faster at sixteen and more. A transposed copy is fast only within one dtype and into
contiguous memory, so it is made first and converted second. Buffers are kept: fresh ones would
cost a page fault for every 4 KiB.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from modelglue.checkpoint.fingerprint import Digesting
from modelglue.checkpoint.reader import Checkpoint, tensor_bytes
from modelglue.checkpoint.spec import torch_dtype

# The rows of all models that are in memory at once, in fp32: more would no longer stay in the
# last-level cache between being transposed and being multiplied. At least 32 rows, since products
# of shorter ones are slow.
WINDOW_BYTES = 8 << 20
LEAST_ROWS = 32


class ColumnProducts:
    """Streams matrices and keeps the buffers between them."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def products(
        self,
        sources: Sequence[Checkpoint],
        name: str,
        *,
        origin: int | None = None,
        digests: Sequence[Digesting] = (),
    ) -> Iterator[Tensor]:
        """The dot products of the columns of the tensor `name`, for each matrix in it.

        A tensor of more than two dimensions holds as many matrices as it has rows.

        Args:
            sources: n checkpoints in which the tensor has the same shape.
            name: the tensor; each byte of it is read once from every source.
            origin: the source that is subtracted from all, itself included.
            digests: of every source, fed with the bytes that are read; or of none.

        Yields:
            [columns, n, n] in fp64: summed in fp32 within a chunk of rows, in fp64 across them.
        """
        shape = sources[0].tensors[name].shape
        n, columns = len(sources), shape[-1]
        for chunks in _chunks(shape, n):
            total = torch.zeros(columns, n, n, dtype=torch.float64)
            for rows in chunks:
                vectors = self._window(sources, name, rows, digests)
                if origin is not None:
                    vectors -= vectors[origin].clone()
                left = vectors.transpose(0, 1)  # [columns, n, rows]
                grams = self._buffer("grams", torch.float32, total.shape)
                total += torch.bmm(left, left.transpose(1, 2), out=grams)
            yield total

    def _window(
        self, sources: Sequence[Checkpoint], name: str, rows: slice, digests: Sequence[Digesting]
    ) -> Tensor:
        """These rows of every source, [sources, columns, rows] in fp32."""
        count, inner = rows.stop - rows.start, sources[0].tensors[name].shape[1:]
        columns, length = inner[-1], count * math.prod(inner[:-1])
        window = self._buffer("window", torch.float32, (len(sources), columns, length))
        for i, source in enumerate(sources):
            spec = source.tensors[name]
            dtype = torch_dtype(spec.dtype)
            chunk = source.read(name, rows, out=self._buffer("read", dtype, (count, *inner)))
            if digests:
                start = rows.start * spec.row_nbytes
                digests[i].update(name, tensor_bytes(chunk), start=start)
            transposed = chunk.view(length, columns).t()
            if dtype != window.dtype:
                staging = self._buffer("transposed", dtype, (columns, length))
                transposed = staging.copy_(transposed)
            window[i].copy_(transposed)
        return window

    def _buffer(self, use: str, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        size = math.prod(shape)
        buffer = self._buffers.get((use, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[use, dtype] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(*shape)


def _chunks(shape: tuple[int, ...], sources: int) -> Iterator[list[slice]]:
    """For each matrix of a tensor, the slices of dimension 0 that are in memory one at a time."""
    if len(shape) > 2:
        yield from ([slice(i, i + 1)] for i in range(shape[0]))
        return
    rows, columns = shape
    step = max(LEAST_ROWS, WINDOW_BYTES // (4 * sources * max(columns, 1)))
    yield [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
