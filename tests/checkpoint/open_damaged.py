"""Opens and wholly reads each folder named on stdin; a line of JSON says what came of it.

A line is the folder, a tab, and the folder of which it is a damaged copy.

A process of its own, with little memory left, so that neither a hang nor a large allocation can
pass for anything else.
"""

import contextlib
import io
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import CheckpointError

HEADROOM = 1 << 30


def in_use() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


Tensors = dict[str, torch.Tensor]


def right_answers(file: Path, original: Path) -> Iterator[Tensors]:
    """What the format's own library reads."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            yield {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return
    with contextlib.suppress(Exception):
        yield torch.load(file, weights_only=True, map_location="cpu")
    # Over parts of the archive that tell nothing of tensors torch stumbles, or takes an entry for
    # a folder and gives uninitialised memory. Right is then what it reads once they are mended.
    mended, damaged = bytearray((original / file.name).read_bytes()), file.read_bytes()
    with Checkpoint.open(original) as sound:
        for spec in sound.tensors.values():
            if spec.file.name == file.name:
                place = slice(spec.offset, spec.offset + spec.nbytes)
                mended[place] = damaged[place]
    yield torch.load(io.BytesIO(mended), weights_only=True, map_location="cpu")


def difference(ours: Tensors, theirs: Tensors) -> str:
    if ours.keys() != theirs.keys():
        return f"other tensors: {sorted(ours.keys() ^ theirs.keys())}"
    for name, tensor in theirs.items():
        found = ours[name]
        if (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
            return f"{name}: {found.dtype} {found.shape}, not {tensor.dtype} {tensor.shape}"
        if bits(found) != bits(tensor):
            return f"{name}: other bytes than the library reads"
    return ""


def open_and_read(folder: Path, original: Path) -> str:
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.fingerprint()
        found: dict[Path, Tensors] = {}
        for name, spec in checkpoint.tensors.items():
            found.setdefault(spec.file, {})[name] = checkpoint.read(name)
    for file, tensors in found.items():
        faults = []
        for theirs in right_answers(file, original):
            faults.append(difference(tensors, theirs))
            if not faults[-1]:
                break
        else:
            return "; ".join(faults)
    return "read"


if __name__ == "__main__":
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (in_use() + HEADROOM, in_use() + HEADROOM))
    for line in sys.stdin:
        start = time.monotonic()
        try:
            outcome = open_and_read(*map(Path, line.rstrip("\n").split("\t")))
        except CheckpointError as error:
            outcome = f"refused: {error}"
        except BaseException as error:  # noqa: BLE001
            outcome = f"{type(error).__name__}: {error}"
        answer = {"outcome": outcome, "seconds": time.monotonic() - start}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
