"""A checkpoint copied with a few tensors replaced, whole or not at all."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from modelglue.checkpoint.naming import split_layer
from modelglue.checkpoint.reader import Checkpoint, tensor_bytes
from modelglue.checkpoint.spec import torch_dtype
from modelglue.errors import MixtureError
from modelglue.journal import read_json, write_json
from modelglue.mixture.conditions import as_json
from modelglue.mixture.folder import copy_files, model_files, whole_folder
from modelglue.mixture.stock_formats import FORMATS


def write_with(
    source: Path,
    out: Path,
    tensors: Mapping[str, Tensor],
    *,
    conditions: Sequence[float],
    note: Mapping[str, Any],
) -> None:
    """Copy a model folder byte for byte, but for the bytes of these tensors.

    Args:
        tensors: by their names in the file; of the same shapes, cast to the types there.
        conditions: of the routers that these are, for "modelglue" in `config.json`.
        note: what that is to tell of it, as "training".

    Raises:
        OutputExists: `out` is taken.
        OutOfSpace: the disk can't hold it.
    """
    files = model_files(source)
    nbytes = sum((source / name).stat().st_size for name in files)
    with Checkpoint.open(source) as checkpoint:
        specs = {name: checkpoint.spec(name) for name in tensors}
    with whole_folder(out, nbytes=nbytes) as folder:
        copy_files(files, source, folder)
        for name, tensor in tensors.items():
            spec = specs[name]
            if tuple(tensor.shape) != spec.shape or spec.strides is not None:
                raise MixtureError(f"{source}: {name} cannot be replaced where it stands")
            data = tensor_bytes(tensor.detach().cpu().to(torch_dtype(spec.dtype)).contiguous())
            with (folder / spec.file.name).open("r+b") as file:
                file.seek(spec.offset)
                file.write(data)
        config = read_json(folder / "config.json")
        told = {"conditions": as_json(conditions), "training": dict(note)}
        config["modelglue"] = {**config.get("modelglue", {}), **told}
        write_json(folder / "config.json", config)


def stored_names(checkpoint: Checkpoint, parameters: Iterable[str]) -> dict[str, str]:
    """What a model's parameters are called in its file.

    transformers renames some when it loads them (a stock mixture's gates); those are told by their
    layer, and by what their class calls them in files.

    Raises:
        MixtureError: one can't be found.
    """
    stock = FORMATS.get(str(checkpoint.config.get("model_type")))
    gates: dict[int, str] = {}
    for name in checkpoint.tensors:
        place = split_layer(name)
        if stock is not None and place is not None and place[2] == f".{stock.router}":
            gates[place[1]] = name
    found = {}
    for name in parameters:
        place = split_layer(name)
        kept = name if name in checkpoint.tensors else gates.get(-1 if place is None else place[1])
        if kept is None:
            raise MixtureError(f"{checkpoint.path}: the file has no tensor for the router {name}")
        found[name] = kept
    return found
