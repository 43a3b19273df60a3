"""A shrunken zoo with one task, which has items enough to set some aside."""

import json
from pathlib import Path
from typing import Any

import yaml

import shrunken
from modelglue.recipe.config import RecipeConfig, parse_recipe

MODELS = ("base", "ft-a", "ft-b")


def make_stories(folder: Path) -> Path:
    """The zoo; returns its root."""
    root = shrunken.make_zoo(folder).parent
    for split in ("search", "report"):
        lines = [
            {"id": f"{split}-{i}", "text": f"{split} {i} {word}", "reference": f"{word} {i % 7}"}
            for i in range(24)
            for word in [shrunken.WORDS[i % 10]]
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / "tasks" / f"story.{split}.jsonl").write_text(text)
    return root


def story_recipe(zoo: Path, output: Path, search: dict[str, Any], **more: Any) -> RecipeConfig:
    """Three related models and the story task."""
    found = yaml.safe_load((zoo / "glue.yaml").read_text())
    found |= {"models": [f"models/{name}" for name in MODELS], "search": search}
    found["tasks"] = [task for task in found["tasks"] if task["name"] == "story"]
    return parse_recipe({**found, "output": str(output), **more}, root=zoo)
