"""Which tensor goes to which byte of which shard, decided before a byte is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelglue.checkpoint.output_file import PAGE
from modelglue.checkpoint.safetensors_header import METADATA
from modelglue.checkpoint.spec import BITS, TensorSpec, nbytes_of
from modelglue.errors import UnsupportedCheckpoint
from modelglue.registry import nearest


@dataclass(frozen=True)
class Shard:
    """A file to be: its name, header and the places of its tensors."""

    name: str
    header: bytes
    tensors: tuple[TensorSpec, ...]
    nbytes: int


def plan_shards(
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    max_bytes: int,
    metadata: Mapping[str, str],
) -> list[Shard]:
    """Fill shards in the layout's order, as transformers does; a larger tensor has one alone.

    Args:
        layout: name → (dtype, shape).
        max_bytes: of tensors in a shard.
        metadata: for every shard's header.

    Raises:
        UnsupportedCheckpoint: a dtype that the format does not have.
    """
    if not layout:
        raise ValueError("a checkpoint needs at least one tensor")
    groups: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in layout.items():
        if dtype not in BITS:
            raise UnsupportedCheckpoint(f"{name}: unknown dtype {dtype!r}{nearest(dtype, BITS)}.")
        nbytes = nbytes_of(dtype, shape)
        if groups[-1] and filled + nbytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += nbytes
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    return [
        _shard(name, {tensor: layout[tensor] for tensor in group}, metadata)
        for name, group in zip(names, groups, strict=True)
    ]


def _shard(
    file: str, layout: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> Shard:
    # Wide dtypes first: then every tensor is aligned to its elements, as the format asks.
    order = sorted(layout, key=lambda name: -BITS[layout[name][0]])
    entries: dict[str, object] = {METADATA: dict(metadata)}
    at = 0
    for name in order:
        dtype, shape = layout[name]
        end = at + nbytes_of(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    # The first tensor begins a page: what is written in whole pages is written faster.
    text += b" " * (-(8 + len(text)) % PAGE)
    header = len(text).to_bytes(8, "little") + text
    specs = []
    position = len(header)
    for name in order:
        dtype, shape = layout[name]
        nbytes = nbytes_of(dtype, shape)
        specs.append(TensorSpec(name, dtype, tuple(shape), Path(file), position, nbytes))
        position += nbytes
    return Shard(file, header, tuple(specs), position)
