"""How memory and time of our merges grow: with size, with the number of models and of tensors."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fabricate import SIZES, Shapes, fabricate, linked, size_in_bytes
from merge_cases import CASES, MEMORY, Bench, need_room, weights
from processes import Spent, median

MODELS = (2, 4, 8, 16)
MODELS_SIZE = "0.1"
STEADY = 1.15
"""A peak is steady if the largest model's is at most so many times that of the one before."""
CHUNKS = 16 << 20
"""What one more model may add, in bytes: a few chunks that are under way at once."""

TENSORS = 20_000
FEW_TENSORS = 800
MILLISECONDS = 0.2
LINEAR_SIZES = ("0.1", "0.25", "1.1")
LINEAR = 1.25
"""Seconds per byte of a size may be so many times those of any smaller one."""

Figures = dict[str, dict[str, Any]]


def measure_memory(bench: Bench, cases: Sequence[str], *, sizes: Sequence[str]) -> Figures:
    """Peaks by case: `sizes` (by billions of parameters) and `models` (by their number)."""
    cases = [name for name in cases if not CASES[name].tiny]
    found: Figures = {name: {"sizes": {}, "models": {}} for name in cases}
    for size in sizes:
        models = _family(bench, size)
        for name in cases:
            spent = bench.ours(name, models[: CASES[name].models], cores=2)
            found[name]["sizes"][size] = _told(f"{name}, {size} B", spent)
    models = bench.models(MODELS_SIZE, max(MODELS))
    for name in cases:
        for count in MODELS if CASES[name].models > 2 else ():
            spent = bench.ours(name, models[:count], cores=2)
            found[name]["models"][str(count)] = _told(f"{name}, {count} models", spent)
    return found


def _family(bench: Bench, size: str) -> list[Path]:
    """A base and three fine-tunes; of a large size the fine-tunes are links to one file.

    Where the disk has no room for two large models and an output, all four are links to one.
    """
    if size != "7":
        return bench.models(size, 4)
    one = size_in_bytes(SIZES[size].shapes)
    folder = bench.work / f"models-{size}"
    two = (folder / "model-1/config.json").exists() or (
        shutil.disk_usage(bench.work).free > 3.3 * one
    )
    models = bench.models(size, 2 if two else 1)
    copies = linked(models[-1], folder, models=3)
    return [models[0], *copies]


def print_memory(found: Figures) -> None:
    """Two tables of peaks, with verdicts."""
    sizes = list(next(iter(found.values()))["sizes"])
    print(f"\npeak private MB, {'':8}" + "".join(f"{size + ' B':>8}" for size in sizes))
    for name, figures in found.items():
        peaks = [figures["sizes"][size]["private"] for size in sizes]
        kept = max(peaks) <= MEMORY and peaks[-1] <= STEADY * peaks[max(0, len(peaks) - 2)]
        line = "".join(f"{peak / 1e6:8.0f}" for peak in peaks)
        print(f"{name:25}{line}   {'steady' if kept else 'IT GROWS'}")
    print(f"\n{MODELS_SIZE} B a model {'':10}" + "".join(f"{n:>8}" for n in MODELS) + "  models")
    for name, figures in found.items():
        if figures["models"]:
            peaks = [figures["models"][str(count)]["private"] for count in MODELS]
            each = (peaks[-1] - peaks[0]) / (MODELS[-1] - MODELS[0])
            line = "".join(f"{peak / 1e6:8.0f}" for peak in peaks)
            verdict = "" if each <= CHUNKS else ", MORE THAN A FEW CHUNKS"
            print(f"{name:25}{line}   {each / 1e6:+.1f} MB a model{verdict}")


def measure_tensors(bench: Bench, cases: Sequence[str], *, repeats: int) -> dict[str, Any]:
    """Milliseconds per tensor by case and cores, and seconds per GB by size."""
    cases = [name for name in cases if not CASES[name].tiny]
    return {
        "overhead": {
            name: {str(cores): _overhead(bench, name, cores, repeats) for cores in (1, 2)}
            for name in cases
        },
        "bytes": {size: _per_gigabyte(bench, "linear", size, repeats) for size in LINEAR_SIZES},
    }


def print_tensors(found: Mapping[str, Any]) -> None:
    """Overhead per tensor and time per byte, with verdicts."""
    print(f"\noverhead per tensor, {TENSORS} tensors of 8 × 8 (≤ {MILLISECONDS} ms)")
    for name, by_cores in found["overhead"].items():
        for cores, one in by_cores.items():
            verdict = "yes" if one["milliseconds"] <= MILLISECONDS else "NO"
            print(
                f"{name:17} {cores} cores {one['milliseconds']:8.3f} ms {verdict:4}"
                f"({one['wall']:.2f} s, {one['few_wall']:.2f} s with {FEW_TENSORS} tensors)"
            )
    seconds = [one["seconds_per_gb"] for one in found["bytes"].values()]
    steady = all(one <= LINEAR * min(seconds[:i]) for i, one in enumerate(seconds) if i)
    print(f"\nlinear, 2 cores, seconds beyond start-up per GB read and written: {_yes(steady)}")
    for size, one in found["bytes"].items():
        print(
            f"{size:>6} B {one['gb']:7.2f} GB {one['seconds']:7.2f} s {one['seconds_per_gb']:7.3f}"
        )


def _overhead(bench: Bench, name: str, cores: int, repeats: int) -> dict[str, float]:
    count = CASES[name].models
    many, few = (_crowd(bench.work, number, count) for number in (TENSORS, FEW_TENSORS))
    bench.ours(name, few, cores=cores)
    full = _median(bench, name, many, cores, repeats)
    start = _median(bench, name, few, cores, repeats)
    milliseconds = 1000 * (full.wall - start.wall) / (TENSORS - FEW_TENSORS)
    print(f"{name}, {cores} cores: {milliseconds:.3f} ms a tensor", flush=True)
    return {"milliseconds": milliseconds, "wall": full.wall, "few_wall": start.wall}


def _per_gigabyte(bench: Bench, name: str, size: str, repeats: int) -> dict[str, float]:
    models = bench.models(size, CASES[name].models)
    tiny = bench.models("tiny", CASES[name].models)
    full = _median(bench, name, models, 2, repeats)
    seconds = full.wall - _median(bench, name, tiny, 2, repeats).wall
    sizes = [file.stat().st_size for file in weights(models)]
    gigabytes = (sum(sizes) + sizes[0]) / 1e9
    print(f"{name}, {size} B: {seconds:.2f} s for {gigabytes:.2f} GB", flush=True)
    return {"gb": gigabytes, "seconds": seconds, "seconds_per_gb": seconds / gigabytes}


def _median(bench: Bench, name: str, models: Sequence[Path], cores: int, repeats: int) -> Spent:
    return median([bench.ours(name, models, cores=cores) for _ in range(repeats)])


def _crowd(work: Path, tensors: int, models: int) -> list[Path]:
    """Checkpoints of that many matrices of 8 × 8, named as those of a mixture of experts."""
    need_room(work, 0)
    experts = 400
    shapes: Shapes = {
        f"model.layers.{i // experts}.mlp.experts.{i % experts}.up_proj.weight": (8, 8)
        for i in range(tensors)
    }
    config = {**SIZES["tiny"].config, "num_hidden_layers": tensors // experts}
    return fabricate(work / f"models-of-{tensors}", shapes, config, models=models)


def _told(what: str, spent: Spent) -> dict[str, float]:
    print(f"{time.strftime('%H:%M:%S')} {what}: {spent.private / 1e6:.0f} MB", flush=True)
    return spent.to_json()


def _yes(kept: bool) -> str:
    return "steady" if kept else "NOT STEADY"
