"""The merges that are measured, what is promised of each, and the commands that run them."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabricate import SIZES, fabricate, size_in_bytes
from processes import Spent, run, warm

Config = dict[str, Any]

MEMORY = 500e6
"""Bytes of private memory that no merge may exceed."""


@dataclass(frozen=True)
class Case:
    """One merge.

    Attributes:
        configure: the configuration in mergekit's YAML, from the folders of the models.
        models: how many checkpoints it takes, the base included.
        cpu: how many times less CPU than mergekit it shall take.
        wall: how many times the floor's wall it may take, start-up aside; None: not asked.
        tiny: whether its models are tiny whatever size is asked for.
    """

    configure: Callable[[Sequence[Path]], Config]
    models: int
    cpu: float
    wall: float | None
    tiny: bool = False


def _linear(models: Sequence[Path]) -> Config:
    weight = {"weight": 1 / len(models)}
    return {"models": [{"model": str(path), "parameters": weight} for path in models]}


def _on_base(**parameters: float) -> Callable[[Sequence[Path]], Config]:
    def configure(models: Sequence[Path]) -> Config:
        base, *tuned = map(str, models)
        entries = [
            {"model": path, **({"parameters": parameters} if parameters else {})} for path in tuned
        ]
        return {"base_model": base, "models": entries}

    return configure


def _slerp(models: Sequence[Path]) -> Config:
    first, second = map(str, models)
    return {
        "base_model": first,
        "models": [{"model": first}, {"model": second}],
        "parameters": {"t": 0.5},
    }


CASES = {
    "start-up": Case(_linear, models=2, cpu=4, wall=None, tiny=True),
    "linear": Case(_linear, models=4, cpu=5, wall=1.5),
    "task_arithmetic": Case(_on_base(weight=0.4), models=4, cpu=5, wall=1.5),
    "slerp": Case(_slerp, models=2, cpu=5, wall=2),
    "model_stock": Case(_on_base(), models=4, cpu=5, wall=2),
    "dare_ties": Case(_on_base(weight=0.4, density=0.5), models=4, cpu=10, wall=3),
    "ties": Case(_on_base(weight=0.4, density=0.5), models=4, cpu=30, wall=3),
}


@dataclass(frozen=True)
class Bench:
    """Where things lie, and mergekit's command if it is to be run."""

    work: Path
    mergekit: Path | None = None

    def models(self, size: str, count: int) -> list[Path]:
        """So many checkpoints of that size: the base first."""
        folder = self.work / f"models-{size}"
        need_room(self.work, _missing(folder, size, count))
        return fabricate(folder, SIZES[size].shapes, SIZES[size].config, models=count)

    def configuration(self, name: str, models: Sequence[Path]) -> Path:
        """The case's configuration as a file (JSON is YAML)."""
        method = "linear" if name == "start-up" else name
        config = {"merge_method": method, "dtype": "bfloat16", **CASES[name].configure(models)}
        path = self.work / "merge.yaml"
        path.write_text(json.dumps(config, indent=2))
        return path

    def ours(self, name: str, models: Sequence[Path], *, cores: int) -> Spent:
        """`modelglue merge`, its output deleted."""
        command = Path(sys.executable).parent / "modelglue"
        out = self._out()
        config = self.configuration(name, models)
        warm(weights(models))
        spent = run([command, "merge", config, out], cores=cores)
        check_size(out, models)
        shutil.rmtree(out)
        return spent

    def mergekits(self, name: str, models: Sequence[Path], *, cores: int) -> Spent:
        """`mergekit-yaml`, its output deleted.

        With its defaults. By its own descriptions its options are for other cases:
        `--lazy-unpickle` for `.bin` files, `--low-cpu-memory` for accelerators, `--async-write`
        for a shorter wall at more memory. Kept from asking the hub.
        """
        if self.mergekit is None:
            raise ValueError("mergekit was not to be run")
        out = self._out()
        config = self.configuration(name, models)
        warm(weights(models))
        command: list[str | Path] = [self.mergekit, config, out, "--quiet"]
        spent = run(command, cores=cores, environment=OFFLINE)
        check_size(out, models)
        shutil.rmtree(out)
        return spent

    def floor(self, models: Sequence[Path], *, cores: int) -> Spent:
        """The floor; its `wall` is what it prints, without the interpreter's start."""
        target = self.work / "floor.bin"
        target.unlink(missing_ok=True)
        inputs = weights(models)
        warm(inputs)
        script = Path(__file__).parent / "floor.py"
        size = inputs[0].stat().st_size
        options: list[str | Path] = [
            *("--threads", str(cores)),
            *("--output", target),
            *("--bytes", str(size)),
        ]
        spent = run([sys.executable, "-S", script, *options, *inputs], cores=cores)
        target.unlink()
        return Spent(spent.cpu, float(spent.output), spent.private, spent.resident)

    def _out(self) -> Path:
        out = self.work / "merged"
        for left in self.work.glob("*merged*"):  # of a run that was stopped
            shutil.rmtree(left)
        return out


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def weights(models: Sequence[Path]) -> list[Path]:
    """The files that hold the tensors."""
    return [file for path in models for file in sorted(path.glob("*.safetensors"))]


def check_size(out: Path, models: Sequence[Path]) -> None:
    """Exit unless the output holds as many bytes as a model (headers may differ a little)."""
    written, expected = (sum(f.stat().st_size for f in weights([p])) for p in (out, models[0]))
    if abs(written - expected) > 0.01 * expected + 65536:
        sys.exit(f"{out} holds {written} bytes of tensors; {expected} were expected")


def need_room(folder: Path, size: int) -> None:
    """Exit where the disk has less than `size` bytes and a margin."""
    free = shutil.disk_usage(folder).free
    wanted = size + 2_000_000_000
    if size and free < wanted:
        sys.exit(f"{folder} has {free / 1e9:.1f} GB free; {wanted / 1e9:.1f} GB are needed")


def _missing(folder: Path, size: str, count: int) -> int:
    """Bytes to write for the models that are not there yet, and for one output."""
    there = all((folder / f"model-{i}" / "config.json").exists() for i in range(count))
    return size_in_bytes(SIZES[size].shapes) * (1 if there else count + 1)
