"""A shrunken zoo with random weights, and a recipe on it that runs in seconds.

Likelihoods of untrained models differ from one another continuously, so merges are accepted and
dropped as in a real zoo; the foreign model leads at a task, so that there is a mixture at the end.
"""

import json
import random
from pathlib import Path
from typing import Any

import yaml

import tiny
from modelglue.evaluate.huggingface import HuggingFaceModel

WORDS = "river stone cloud amber violin harbour maple engine lantern copper".split()


def make_zoo(root: Path) -> Path:
    """Models, tasks and a recipe under `root`; returns the recipe's path."""
    models = root / "models"
    base = tiny.save_model(models / "base", seed=0, num_hidden_layers=2)
    for seed, name in enumerate(["ft-a", "ft-b", "ft-c"], start=1):
        tiny.save_variant(base, models / name, seed=seed, scale=0.004)
    tiny.save_variant(base, models / "drifted", seed=9, scale=0.03)
    tiny.save_model(
        models / "foreign",
        seed=5,
        model_type="gpt_neox",
        num_hidden_layers=1,
        initializer_range=0.2,
    )
    _write_tasks(root / "tasks", HuggingFaceModel.load(models / "foreign"))
    recipe = {
        "models": [
            {"model": "models/base", "prompts": [f"tell {w} {w}" for w in WORDS]},
            *(f"models/{name}" for name in ["ft-a", "ft-b", "ft-c", "drifted"]),
            {"model": "models/foreign", "prompts": [f"{w} {w}" for w in WORDS]},
        ],
        "base": "models/base",
        "tasks": [
            _task("story", "text"),
            _task("choice", "multiple_choice", metric="acc"),
            _task("echo", "generate", max_new_tokens=3),
            _task("code", "code", max_new_tokens=3),
        ],
        # Too few items to set some aside that accept.
        "search": {"validation": 0},
        "output": "runs/first",
    }
    path = root / "glue.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _task(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    files = {split: f"tasks/{name}.{split}.jsonl" for split in ("search", "report")}
    return {"name": name, "kind": kind, **settings, **files}


def _write_tasks(folder: Path, leader: HuggingFaceModel) -> None:
    folder.mkdir(parents=True)
    for number, split in enumerate(["search", "report"]):
        rng = random.Random(number)

        def words(count: int, rng: random.Random = rng) -> str:
            return " ".join(rng.choice(WORDS) for _ in range(count))

        items: dict[str, list[dict[str, Any]]] = {
            "story": [{"text": f"{split} {i} {words(2)}", "reference": words(3)} for i in range(8)],
            "choice": [
                choice(leader, f"{split} {i} {words(2)}", rng.sample(WORDS, 4)) for i in range(8)
            ],
            "echo": [{"prompt": f"{split} {i} {words(2)}", "answer": "x"} for i in range(4)],
            "code": [
                {"prompt": f"# {split} {i}\nx = 1 #", "tests": f"assert x == {1 + i % 2}"}
                for i in range(4)
            ],
        }
        for name, rows in items.items():
            lines = [json.dumps({"id": f"{name}-{split}-{i}", **row}) for i, row in enumerate(rows)]
            (folder / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n")


def choice(leader: HuggingFaceModel, prompt: str, choices: list[str]) -> dict[str, Any]:
    """A question whose answer is what `leader` finds likeliest, so that it leads this task."""
    (found,) = leader.loglikelihoods([prompt], [[f" {choice}" for choice in choices]])
    totals = [likelihood.total for likelihood in found]
    return {"prompt": prompt, "choices": choices, "answer": totals.index(max(totals))}
