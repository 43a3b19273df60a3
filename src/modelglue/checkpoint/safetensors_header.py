"""The header of a safetensors file, believed only after every number in it was checked.

A file is 8 bytes of header length, that many bytes of JSON, and the tensors' bytes without a gap:
{"name": {"dtype": …, "shape": […], "data_offsets": [begin, end]}, "__metadata__": {…}}.
"""

import math
import os
from pathlib import Path
from typing import Any

from modelglue.checkpoint.files import (
    LARGEST_JSON,
    open_regular,
    parse_json_object,
    read_exactly,
)
from modelglue.checkpoint.spec import BITS, TensorSpec
from modelglue.errors import CorruptCheckpoint, UnsupportedCheckpoint
from modelglue.registry import nearest

METADATA = "__metadata__"


def read_header(path: Path) -> tuple[dict[str, TensorSpec], os.stat_result]:
    """The tensors of a safetensors file in the order of their bytes, and the file's status.

    Raises:
        CorruptCheckpoint: the header contradicts itself or the file.
        UnsupportedCheckpoint: a dtype that nobody knows.
    """
    descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        header = _header_bytes(descriptor, path, status.st_size)
    finally:
        os.close(descriptor)
    entries = parse_json_object(header, path, what="the header")
    entries.pop(METADATA, None)
    data_start = 8 + len(header)
    specs = [_spec(name, entry, path, data_start) for name, entry in entries.items()]
    specs.sort(key=lambda spec: (spec.offset, spec.nbytes))
    _check_tiling(specs, path, data_start, status.st_size)
    return {spec.name: spec for spec in specs}, status


def _header_bytes(descriptor: int, path: Path, size: int) -> bytes:
    if size < 8:
        raise CorruptCheckpoint(
            f"{path}: {size} bytes are too few for a safetensors file. Fetch the file again."
        )
    prefix = bytearray(8)
    read_exactly(descriptor, path, memoryview(prefix), 0)
    length = int.from_bytes(prefix, "little")
    if length > LARGEST_JSON or length > size - 8:
        raise CorruptCheckpoint(
            f"{path}: the header claims {length:,} bytes, the whole file has {size:,}. "
            "It is truncated or no safetensors file; fetch it again."
        )
    header = bytearray(length)
    read_exactly(descriptor, path, memoryview(header), 8)
    if not header.startswith(b"{"):
        raise CorruptCheckpoint(
            f"{path}: the header does not begin with '{{'; this is no safetensors file."
        )
    return bytes(header)


def _spec(name: str, entry: Any, path: Path, data_start: int) -> TensorSpec:
    if not isinstance(entry, dict):
        raise CorruptCheckpoint(f"{path}: {name}: the header's entry is no object.")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise CorruptCheckpoint(f"{path}: {name}: the header gives no dtype.")
    if dtype not in BITS:
        raise UnsupportedCheckpoint(
            f"{path}: {name}: unknown dtype {dtype!r}{nearest(dtype, BITS)}. "
            f"Known: {', '.join(BITS)}."
        )
    if not _is_sizes(shape):
        raise CorruptCheckpoint(
            f"{path}: {name}: the shape {_short(shape)} is no list of sizes. Fetch the file again."
        )
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptCheckpoint(
            f"{path}: {name}: the offsets {_short(offsets)} are no range. Fetch the file again."
        )
    begin, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    if bits != (end - begin) * 8:
        raise CorruptCheckpoint(
            f"{path}: {name}: {dtype} {_short(shape)} does not take the {end - begin:,} bytes that "
            "the header gives it. Fetch the file again."
        )
    return TensorSpec(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _is_sizes(value: Any) -> bool:
    # Zero dimensions may hide a product of absurd factors, hence the bound on each.
    if not isinstance(value, list) or len(value) > 64:
        return False
    for size in value:  # noqa: SIM110 (twice as fast as all(), and there are very many)
        if type(size) is not int or not 0 <= size < 1 << 62:
            return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_tiling(specs: list[TensorSpec], path: Path, data_start: int, size: int) -> None:
    at, before = data_start, "the header"
    for spec in specs:
        if spec.offset != at:
            fault = "overlaps" if spec.offset < at else "leaves a hole after"
            raise CorruptCheckpoint(
                f"{path}: {spec.name} {fault} {before} (byte {spec.offset - data_start:,} of the "
                f"data instead of {at - data_start:,}). Fetch the file again."
            )
        at, before = spec.offset + spec.nbytes, spec.name
    if at != size:
        fault = "truncated" if at > size else "too long"
        raise CorruptCheckpoint(
            f"{path}: the file is {fault}: its header describes {at:,} bytes (up to {before}), "
            f"it has {size:,}. Fetch it again."
        )
