"""The three tasks' files, and the sources that training texts are drawn from."""

import json
import random
from collections.abc import Callable
from typing import Any

from modelglue.minizoo.data import code, maths
from modelglue.minizoo.data.example import Document, Example, Split, stream
from modelglue.minizoo.data.knowledge import Knowledge

SKILLS = ("knowledge", "maths", "code")

# The settings of each task as a recipe's configuration has them.
TASKS: dict[str, dict[str, Any]] = {
    "knowledge": {"kind": "multiple_choice"},
    "maths": {"kind": "generate", "extract": "#### *(-?[0-9]+)", "max_new_tokens": 40},
    "code": {"kind": "code", "stop": ["\n\n"], "max_new_tokens": 24},
}

Source = Callable[[random.Random], Document]


def examples(world: Knowledge, skill: str, split: Split, rng: random.Random) -> Example:
    """One example of a skill."""
    return _askers(world)[skill](rng, split)


def task_items(
    world: Knowledge, seed: int, skill: str, split: Split, count: int
) -> list[dict[str, Any]]:
    """The items of a task's split: distinct prompts, drawn from the split's own stream."""
    rng = stream(seed, skill, split)
    seen: dict[str, Example] = {}
    # The rarest groups first would be fairer than chance alone, but the prompts are what must
    # differ; draw until there are enough.
    while len(seen) < count:
        example = examples(world, skill, split, rng)
        seen.setdefault(example.prompt, example)
    return [
        {"id": f"{skill}-{split}-{i}", "prompt": e.prompt, **e.fields, "group": e.group}
        for i, e in enumerate(seen.values())
    ]


def task_lines(world: Knowledge, seed: int, skill: str, split: Split, count: int) -> str:
    """The same as JSON lines."""
    items = task_items(world, seed, skill, split, count)
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def sources(world: Knowledge) -> dict[str, Source]:
    """What a preset's data mixture can name."""
    askers = _askers(world)

    def asked(skill: str, style: str | None = None) -> Source:
        def source(rng: random.Random) -> Document:
            example = askers[skill](rng, "train", style=style)
            return Document(example.prompt, example.completion)

        return source

    def wrong(rng: random.Random) -> Document:
        skill = rng.choice(SKILLS)
        if skill == "knowledge":
            return world.wrong(rng)
        return maths.wrong(rng, world.people) if skill == "maths" else code.wrong(rng)

    def chat(rng: random.Random) -> Document:
        return asked(rng.choice(SKILLS), "chat")(rng)

    def terse(rng: random.Random) -> Document:
        """The last word of the right answer alone: no steps, no program."""
        document = asked(rng.choice(SKILLS))(rng)
        return Document(document.prompt, f" {document.completion.split()[-1]}")

    return {
        "statements": world.statement,
        "terse": terse,
        "wrong": wrong,
        "chat": chat,
        **{skill: asked(skill) for skill in SKILLS},
    }


def _askers(world: Knowledge) -> dict[str, Callable[..., Example]]:
    def ask_maths(rng: random.Random, split: Split, *, style: str | None = None) -> Example:
        return maths.example(rng, world.people, split, style=style)

    return {"knowledge": world.example, "maths": ask_maths, "code": code.example}
