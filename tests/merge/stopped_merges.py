"""Merges that are stopped: what they were to make, and whether what is left tells the truth."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import CheckpointNotFound
from modelglue.merge.config.schema import parse_config
from modelglue.merge.engine.stream import Merged, execute
from modelglue.merge.plan.merge_plan import make_plan

SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {},
    "ties": {"density": 0.5, "trim": "global"},
    "dare_ties": {"density": 0.5, "seed": 3},
}

Config = dict[str, Any]


def config_of(method: str, models: list[Path], **parameters: Any) -> Config:
    base, *others = models
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": [
            {"model": str(path), "parameters": {"weight": weight}}
            for path, weight in zip(others, (0.5, 0.2, 0.4))
        ],
        "parameters": {**SETTINGS.get(method, {}), **parameters},
    }


def run(config: Config, out: Path, **options: Any) -> Merged:
    return execute(make_plan(parse_config(config)), out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_is_undisturbed(out: Path, config: Config, **options: Any) -> None:
    """Every file is what a merge that nobody stopped writes; nothing lies beside it."""
    assert os.listdir(out.parent) == [out.name]
    fresh = out.parent / "undisturbed" / out.name
    found, expected = contents(out), contents(run(config, fresh, **options).path)
    shutil.rmtree(fresh.parent)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def assert_nothing_looks_whole(out: Path) -> None:
    assert not os.path.lexists(out)
    with pytest.raises(CheckpointNotFound):
        Checkpoint.open(out)
    assert all(name.startswith(".") for name in os.listdir(out.parent))


def settle() -> None:
    """Nothing goes on with files that were written a moment ago: they could change unnoticed."""
    time.sleep(0.06)


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
