"""From a model folder to its configuration and checked tensors, whatever the files' format."""

import difflib
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from modelglue.checkpoint.files import Descriptors, read_json_object
from modelglue.checkpoint.pickled import read_pickled
from modelglue.checkpoint.safetensors_header import read_header
from modelglue.checkpoint.spec import TensorSpec
from modelglue.errors import CheckpointError, CheckpointNotFound, CorruptCheckpoint

Read = Callable[[Path], tuple[dict[str, TensorSpec], os.stat_result]]

# In the order in which transformers looks for them.
_FORMATS: tuple[tuple[str, Read], ...] = (
    ("model.safetensors", read_header),
    ("pytorch_model.bin", read_pickled),
)


def read_folder(
    folder: Path, descriptors: Descriptors
) -> tuple[dict[str, Any], dict[str, TensorSpec]]:
    """The configuration and the tensors of a model folder; its files enter `descriptors`.

    Raises:
        CheckpointError: it is no model, or a broken one; nothing but headers was read.
    """
    files = _listing(folder)
    config = _config(folder, files)
    for single, read in _FORMATS:
        index = f"{single}.index.json"
        if single in files:
            path = folder / single
            tensors, status = read(path)
            descriptors.register(path, status)
        elif index in files:
            tensors = _read_shards(folder, index, files, read, descriptors)
        else:
            continue
        if not tensors:
            raise CorruptCheckpoint(f"{folder}: the weights hold no tensor. Fetch them again.")
        return config, tensors
    raise _no_weights(folder, files)


def _listing(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        raise CheckpointNotFound(f"{folder}: there is no such folder{near(folder)}.") from None
    except NotADirectoryError:
        raise CheckpointNotFound(
            f"{folder} is a file. Give the folder that holds config.json and the weights."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(folder)!r} cannot be opened: {error}.") from None


def near(path: Path) -> str:
    """A clause that names the folder nearest in spelling to one that is not there, or nothing."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    try:
        siblings = [entry.name for entry in os.scandir(missing.parent) if entry.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, siblings, n=1, cutoff=0.6)
    return f'; did you mean "{missing.parent / close[0]}"?' if close else ""


def _config(folder: Path, files: set[str]) -> dict[str, Any]:
    if "config.json" in files:
        return read_json_object(folder / "config.json")
    if "adapter_config.json" in files:
        raise CheckpointNotFound(
            f"{folder} is an adapter, not a model. Name the model that it belongs to: "
            f"path/to/base+{folder}."
        )
    if _weights(files):
        raise CheckpointNotFound(
            f"{folder}: config.json is missing beside the weights. Copy it from where the model "
            "came from."
        )
    inner = sorted(name for name in files if (folder / name / "config.json").is_file())
    hint = f" It contains models, though: {', '.join(inner[:5])}." if inner else ""
    raise CheckpointNotFound(
        f"{folder} is not a model folder: it has neither config.json nor weights.{hint}"
    )


def _weights(files: set[str]) -> list[str]:
    return sorted(f for f in files if f.endswith((".safetensors", ".bin", ".gguf", ".pth", ".pt")))


def _no_weights(folder: Path, files: set[str]) -> CheckpointError:
    others = _weights(files)
    if any("-of-" in name for name in others):
        return CorruptCheckpoint(
            f"{folder}: there are shards ({others[0]}, …) but no index that says which tensor is "
            "in which. Fetch model.safetensors.index.json."
        )
    found = f" It has {', '.join(others[:3])}, which is not read." if others else ""
    return CheckpointNotFound(
        f"{folder}: there are no weights: no model.safetensors, pytorch_model.bin, or index of "
        f"shards.{found}"
    )


def _read_shards(
    folder: Path, index: str, files: set[str], read: Read, descriptors: Descriptors
) -> dict[str, TensorSpec]:
    path = folder / index
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpoint(f"{path}: weight_map is missing or empty. Fetch the file again.")
    expected: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CorruptCheckpoint(f"{path}: {tensor}: the shard's name is no text.")
        expected.setdefault(shard, set()).add(tensor)
    for shard in expected:
        _check_shard(path, shard, expected[shard])
    tensors: dict[str, TensorSpec] = {}
    for shard in sorted(expected):
        found, status = read(folder / shard)
        _check_contents(path, shard, expected[shard], set(found))
        descriptors.register(folder / shard, status)
        tensors.update(found)
    return tensors


def _check_shard(index: Path, shard: str, tensors: set[str]) -> None:
    who = f"{index}: {min(tensors)}"
    parts = PurePosixPath(shard).parts
    if not parts or shard.startswith("/") or ".." in parts or "\\" in shard or "\0" in shard:
        raise CorruptCheckpoint(f"{who} points outside of the folder: {shard!r}.")
    try:
        status = os.stat(index.parent / shard)
    except (OSError, ValueError):
        raise CorruptCheckpoint(
            f"{who} is said to be in {shard!r}, which is missing. Fetch the shard."
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise CorruptCheckpoint(f"{who} is said to be in {shard!r}, which is not a file.")


def _check_contents(index: Path, shard: str, expected: set[str], found: set[str]) -> None:
    if expected == found:
        return
    lacking, unknown = sorted(expected - found), sorted(found - expected)
    if lacking:
        problem = f"{lacking[0]} is not in {shard}, where the index places it"
    else:
        problem = f"{shard} holds {unknown[0]}, which the index does not place there"
    raise CorruptCheckpoint(f"{index}: {problem}. Fetch index and shards of one revision.")
