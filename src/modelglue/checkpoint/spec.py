"""What is known of a tensor before a byte of it is read, and the names of its dtypes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelglue.errors import UnsupportedCheckpoint

if TYPE_CHECKING:
    import torch

# Every dtype of the safetensors format, with the bits that one element takes.
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

# The attribute of `torch` that each is called by. Elements smaller than a byte have none.
_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
}
_SAFETENSORS_NAMES = {torch_name: name for name, torch_name in _TORCH_NAMES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name, type and place in a file.

    Attributes:
        dtype: as safetensors calls it: "BF16", "F32", …
        offset: of the first byte, from the start of the file.
        nbytes: of the tensor, which is not what it takes in the file when `strides` is set.
        strides: in elements, for a `.bin` tensor that is not stored row after row; else None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """The length of dimension 0; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def row_nbytes(self) -> int:
        """The bytes of one row; 0 when there are no rows."""
        return self.nbytes // self.rows if self.rows else 0


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """The bytes that a tensor of this dtype and shape takes, rounded up.

    >>> nbytes_of("BF16", (3, 2))
    12
    """
    return (math.prod(shape) * BITS[dtype] + 7) // 8


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype that safetensors calls `dtype`.

    Raises:
        UnsupportedCheckpoint: torch has no such elements.
    """
    import torch

    found = getattr(torch, _TORCH_NAMES.get(dtype, ""), None)
    if not isinstance(found, torch.dtype):
        raise UnsupportedCheckpoint(
            f"dtype {dtype} cannot be read as a tensor by torch {torch.__version__}. "
            "Convert the model to BF16 first."
        )
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """What safetensors calls a torch dtype.

    Raises:
        UnsupportedCheckpoint: the format has no such dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _SAFETENSORS_NAMES:
        raise UnsupportedCheckpoint(f"safetensors files cannot hold {dtype}. Cast it first.")
    return _SAFETENSORS_NAMES[name]
