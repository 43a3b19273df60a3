"""Memory does not grow with the model; chunks and threads change no byte."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hollow
import merge_peak
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import modelglue
import tiny

MIB = 1 << 20
# A chunk of 1 MiB in bfloat16 of each model, and as much in fp32 for what is computed, a thread.
ALLOWED = 60 * MIB
METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "ties": {"density": 0.5},
    "dare_ties": {"density": 0.5, "seed": 4},
    "slerp": {"t": 0.4},
}
SUMS = {"slerp"}
"""Methods that add numbers up over the whole tensor, which rounds otherwise in other chunks."""


def config_of(method: str, models: list[Path], **more: Any) -> dict[str, Any]:
    base, *others = models
    entries = [str(path) for path in (others[:1] if method == "slerp" else others)]
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": entries,
        "parameters": {**METHODS.get(method, {}), **more},
    }


# Memory


def large(root: Path, layers: int) -> list[Path]:
    """A base and two models in bfloat16: so many matrices of 8 MiB, and an embedding of 4 MiB."""
    names = {"model.embed_tokens.weight": (2048, 1024)}
    names |= {f"model.layers.{i}.mlp.up_proj.weight": (4096, 1024) for i in range(layers)}
    generator = np.random.default_rng(layers)
    paths = [hollow.save(root / f"{n}{layers}", names, num_hidden_layers=layers) for n in "abc"]
    for path in paths:
        weights = path / "model.safetensors"
        length = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
        with weights.open("r+b") as file:
            file.seek(length)
            block = (generator.normal(size=MIB) * 0.02).astype(np.float32).view(np.uint32) >> 16
            for _ in range(0, weights.stat().st_size - length, 2 * MIB):
                file.write(np.roll(block.astype(np.uint16), int(generator.integers(MIB))).data)
    return paths


def mostly_equal(paths: list[Path]) -> None:
    """Make of the models the base with one entry in twenty changed, as a light fine-tune has it."""
    base = (paths[0] / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(base[:8], "little")
    bits = np.frombuffer(base, np.uint16, offset=length).copy()
    bits[::20] += 1
    for path in paths[1:]:
        (path / "model.safetensors").write_bytes(base[:length] + bits.tobytes())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """Layers → base and two models: of 12, 20 and 164 MiB each."""
    root = tmp_path_factory.mktemp("large")
    return {layers: large(root, layers) for layers in (1, 2, 20)}


def peak(config: dict[str, Any], warm_up: dict[str, Any], out: Path) -> int:
    command = [sys.executable, merge_peak.__file__, json.dumps(config), str(out)]
    command.append(json.dumps(warm_up))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("linear", {}), ("ties", {}), ("ties", {"trim": "global"})],
    ids=["linear", "ties", "ties over the model"],
)
def test_memory_does_not_grow_with_the_model(
    method: str, parameters: dict[str, Any], models: dict[int, list[Path]], tmp_path: Path
) -> None:
    if parameters:  # comes last
        for paths in models.values():
            mostly_equal(paths)
    asked = {n: config_of(method, paths, **parameters) for n, paths in models.items()}
    small, big = (peak(asked[n], asked[1], tmp_path / str(n)) for n in (2, 20))
    size = (tmp_path / "20" / "model.safetensors").stat().st_size
    assert size > 160 * MIB
    assert small < ALLOWED
    assert big < small + 16 * MIB


# Chunks and threads


@pytest.mark.parametrize("chunk", [512, 3000])
@pytest.mark.parametrize("method", METHODS)
def test_chunks_and_threads_change_no_byte(
    method: str, chunk: int, family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(method, family)
    written = {}
    for size, threads in ((1 << 19, 1), (chunk, 1), (chunk, 5)):
        monkeypatch.setattr("modelglue.merge.chunk.CHUNK", size)
        monkeypatch.setattr("modelglue.merge.engine.stream.CHUNK", size)
        out = tmp_path / f"{size}-{threads}"
        if not out.exists():
            modelglue.merge(config, out, threads=threads)
        written[size, threads] = (out / "model.safetensors").read_bytes()
    assert written[chunk, 1] == written[chunk, 5]
    if method not in SUMS:
        assert len(set(written.values())) == 1
    whole, cut = (load_file(tmp_path / f"{n}-1" / "model.safetensors") for n in (1 << 19, chunk))
    for name, tensor in whole.items():
        step = 1e-6 if tensor.dtype == torch.float32 else 2**-7
        assert torch.allclose(cut[name].float(), tensor.float(), rtol=step, atol=1e-7), name


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three fine-tunes."""
    root = tmp_path_factory.mktemp("family")
    dtype = getattr(torch, request.param)
    base = tiny.save_model(root / "base", num_hidden_layers=2, dtype=dtype)
    return [base, *(tiny.save_variant(base, root / str(i), seed=i, scale=0.01) for i in (1, 2, 3))]
