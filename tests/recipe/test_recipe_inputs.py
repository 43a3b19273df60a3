"""What is found wrong when a run's inputs are opened."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modelglue.errors import ConfigError
from modelglue.evaluate.sandbox import Program, batch
from modelglue.recipe.config import RecipeConfig, parse_recipe
from modelglue.recipe.inputs import open_inputs

Write = Callable[[str, list[dict[str, Any]]], Path]


def recipe(folder: Path, models: list[Path], *tasks: dict[str, Any]) -> RecipeConfig:
    return parse_recipe(
        {
            "models": [str(path) for path in models[1:3]],
            "tasks": [{key: str(value) for key, value in task.items()} for task in tasks],
            "output": "run",
            "search": {"strategy": "heuristic_average", "validation": 0},
        },
        root=folder,
    )


def test_what_one_task_searches_on_and_another_reports_is_refused(
    llamas: list[Path], tmp_path: Path, write_jsonl: Write
) -> None:
    def sums(name: str, numbers: range, opening: str = "") -> Path:
        items = [{"id": n, "prompt": f"{opening}{n} + 1 =", "answer": f"{n + 1}"} for n in numbers]
        return write_jsonl(f"{name}.jsonl", items)

    first = {"name": "first", "kind": "generate"}
    first |= {"search": sums("a", range(9)), "report": sums("b", range(20, 29))}
    second = {"name": "second", "kind": "generate", "report": sums("d", range(7, 19), " \n")}
    second["search"] = sums("c", range(28, 40))
    with pytest.raises(ConfigError) as caught, open_inputs(recipe(tmp_path, llamas, first, second)):
        pass
    told = str(caught.value)
    assert "tasks first and second: 2 report items of second ask what search items of first" in told
    assert "such as '7' of second and '7' of first" in told
    assert "tasks second and first: 1 report items of first" in told
    second |= {"search": sums("c", range(30, 40)), "report": sums("d", range(10, 19))}
    with open_inputs(recipe(tmp_path, llamas, first, second)) as inputs:
        assert len(inputs.tasks) == 2


def test_what_several_gpus_for_a_model_need_is_told_before_any_work(
    llamas: list[Path], tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"name": "story", "kind": "text"} | {
        split: write_jsonl(f"{split}.jsonl", [{"id": split, "text": split, "reference": " x"}])
        for split in ("search", "report")
    }
    config = recipe(tmp_path, llamas, task)
    search = replace(config.search, executor="ray", gpus_per_worker=2)
    config = replace(config, device="cuda", search=search)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"search\.gpus_per_worker: .* this process sees 1"):
        open_inputs(config).__enter__()
    monkeypatch.setattr("modelglue.evaluate.devices.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"search\.gpus_per_worker: .* accelerate, which is not"):
        open_inputs(config).__enter__()


def test_a_worker_runs_programs_on_its_share_of_the_cores(
    llamas: list[Path], tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"name": "code", "kind": "code"} | {
        split: write_jsonl(f"{split}.jsonl", [{"id": split, "prompt": split, "tests": "x"}])
        for split in ("search", "report")
    }
    started: list[object] = []
    start = batch.Worker.__init__

    def counting(self: batch.Worker, *arguments: object, **settings: object) -> None:
        started.append(self)
        start(self, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(batch.os, "sched_getaffinity", lambda _: range(3))
    for share, count in ((1, 1), (None, 3)):
        with open_inputs(recipe(tmp_path, llamas, task), share=share) as inputs:
            assert inputs.sandbox is not None
            monkeypatch.setattr(batch.Worker, "__init__", counting)
            started.clear()
            inputs.sandbox.run([Program(f"a = {n}") for n in range(24)])
            assert len(started) == count
