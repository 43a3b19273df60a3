"""A zoo in which nothing helps: the specialists replaced by noise around the base."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.recipe.config import parse_recipe
from modelglue.recipe.search import search_families
from search_zoo import Zoo

PRESET, BASES = "quick", (300, 301, 302, 303, 304)
"""The zoos whose base and items the seeds take in turn."""
NOISE = 0.15
"""Standard deviation of the noise, in those of each tensor."""
TRIALS, LEVEL, MODELS = 40, 0.01, 4


def nothing_helps(zoo: Zoo) -> dict[str, Any]:
    """Search a base and its noisy copies, and say what is kept."""
    trained = Zoo(zoo.path.parent, PRESET, BASES[zoo.seed % len(BASES)])
    recipe = trained.recipe
    folder = zoo.path.parent / f"noise-{zoo.seed}"
    names = [f"noise-{number}" for number in range(MODELS)]
    for number, name in enumerate(names):
        if not (folder / name).exists():
            _noisy(trained.path / "models" / "base", folder / name, 1000 * zoo.seed + number)
    config = parse_recipe(
        {
            **recipe,
            "models": [recipe["base"], *(str(folder / name) for name in names)],
            "search": {
                "strategies": [
                    "heuristic_average",
                    {"strategy": "evolution", "trials": TRIALS, "warm_start": "heuristic_average"},
                ],
                "level": LEVEL,
                "seed": zoo.seed,
            },
            "threshold": 0.5,
            "output": str(folder / "run"),
        },
        root=trained.path,
    )
    choice = search_families(config).choices[0]
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
    return {
        "members": list(choice.members),
        "best": max(choice.singles, key=lambda name: choice.singles[name].mean),
        "kept": choice.label,
        "tested": choice.verdict is not None,
        "tried": choice.verdict.tried if choice.verdict else None,
        "words": choice.verdict.words() if choice.verdict else "a single model did best",
    }


def print_nothing(found: Mapping[str, dict[str, Any]]) -> None:
    right = sum(one["kept"] == one["best"] for one in found.values())
    tested = sum(one["tested"] for one in found.values())
    print(
        f"the answer is the best single model in {right} of {len(found)} seeds "
        f"(level {LEVEL}; in {tested} a merge had done best and was put to the test)"
    )
    for seed, one in found.items():
        if one["kept"] != one["best"]:
            print(f"  seed {seed}: {one['words']}")


def _noisy(base: Path, out: Path, seed: int) -> None:
    """The base plus Gaussian noise on every weight matrix."""
    generator = torch.Generator().manual_seed(seed)
    with Checkpoint.open(base) as source:
        layout = {name: (spec.dtype, spec.shape) for name, spec in source.tensors.items()}
        with CheckpointWriter(out, layout) as writer:
            for name in source.tensors:
                tensor = source.read(name)
                noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
                share = NOISE if tensor.dim() > 1 else 0.0
                writer.write(name, (tensor.float() + share * noise).to(tensor.dtype))
            writer.commit(config=source.config, files_from=source)
