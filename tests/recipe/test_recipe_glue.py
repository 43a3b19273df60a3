"""The whole recipe on real checkpoints: what it leaves, what it refuses, what a kill does to it."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import shrunken
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import ConfigError, RunConflict
from modelglue.journal import read_json
from modelglue.mixture.bundle import Bundle
from modelglue.recipe.config import load_recipe
from modelglue.recipe.evaluate import evaluate_model
from modelglue.recipe.glue import Outcome, glue
from modelglue.recipe.search import search_families
from modelglue.report.data import SearchPath

FORK = multiprocessing.get_context("fork")
# What may differ between two runs of the same: how long it took.
TIMED = ("seconds",)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shrunken.make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def whole(zoo: Path) -> Outcome:
    """An undisturbed run."""
    return glue(load_recipe(zoo))


def test_the_merged_family_and_the_foreign_model_end_up_behind_a_router(whole: Outcome) -> None:
    fates = {model.name: model.fate for model in whole.report.models}
    assert fates["foreign"] == "expert"
    assert fates["drifted"] != "merged"
    assert "merged" in fates.values()
    bundle = Bundle.load(whole.model)
    assert bundle.experts == ("merged-1", "foreign")


def test_families_are_by_similarity_and_architecture(whole: Outcome) -> None:
    assert set(whole.report.similarity.families) == {
        ("base", "ft-a", "ft-b", "ft-c"),
        ("drifted",),
        ("foreign",),
    }
    reasons = {frozenset((r.a, r.b)): r.reason for r in whole.report.similarity.reasons}
    assert "0.95" in reasons[frozenset(("base", "drifted"))]
    assert "gpt_neox" in reasons[frozenset(("base", "foreign"))]


def test_what_is_written_is_what_won(whole: Outcome) -> None:
    (winner,) = [path for path in whole.report.searches if path.winner]
    merged = whole.path / "stages" / "merge-1" / "model"
    rivals = [p for p in whole.report.searches if _tasks_of(p) == _tasks_of(winner)]
    assert winner.score == max(path.score for path in rivals)
    AutoModelForCausalLM.from_pretrained(merged)
    models = whole.path.parents[1] / "models"
    with Checkpoint.open(merged) as opened:
        for name in opened.tensors:
            expected = 0
            for model, weight in winner.coefficients.items():
                with Checkpoint.open(models / model) as source:
                    expected = expected + weight * source.read(name).double()
            assert (opened.read(name).double() - expected).abs().max() < 1e-6


def test_the_table_has_every_contestant_and_scores_equal_models_alike(whole: Outcome) -> None:
    names = [row.name for row in whole.report.table]
    for name in (
        "uniform merge of everything",
        "uniform merge of the family",
        "glued model",
        "heuristic_average",
        "per-task oracle",
        "base",
        "foreign",
    ):
        assert name in names
    best = [row for row in whole.report.table if row.kind == "single" and row.difference is None]
    assert best[0].average == max(r.average for r in whole.report.table if r.kind == "single")


def test_report_items_are_looked_at_only_after_every_choice_stands(whole: Outcome) -> None:
    events = [json.loads(line) for line in (whole.path / "journal.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == sorted(kinds, key=["trial", "report"].index)
    last_choice = max(
        (whole.path / "stages" / stage / "manifest.json").stat().st_mtime_ns
        for stage in ("cluster", "search-1", "merge-1", "mixture")
    )
    assert last_choice < (whole.path / "stages" / "report" / "manifest.json").stat().st_mtime_ns
    for event in events:
        tasks = event["scores"].get("tasks") or [event["scores"]]
        split = {"trial": "-search-", "report": "-report-"}[event["event"]]
        assert all(split in item for task in tasks for item in task["items"])


def test_a_finished_run_is_not_run_again(whole: Outcome, zoo: Path) -> None:
    before = _visible(whole.path)
    again = glue(load_recipe(zoo))
    assert not again.fresh
    assert again.report == whole.report
    assert _visible(whole.path) == before


def test_search_alone_leaves_what_glue_goes_on_from(whole: Outcome, zoo: Path) -> None:
    recipe = load_recipe(zoo, output=str(zoo.parent / "runs" / "searched"))
    found = search_families(recipe)
    assert [(p.strategy, p.steps) for p in found.paths] == [
        (p.strategy, p.steps) for p in whole.report.searches if not _tasks_of(p)
    ]
    journal = (recipe.output / "journal.jsonl").read_bytes()
    assert _result(glue(recipe).path) == _result(whole.path)
    assert (recipe.output / "journal.jsonl").read_bytes().startswith(journal)


def test_another_recipe_for_the_same_run_is_refused(whole: Outcome, zoo: Path) -> None:
    with pytest.raises(RunConflict, match="threshold"):
        glue(load_recipe(zoo, threshold=0.9))


def test_a_model_that_changed_under_a_run_is_refused(zoo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(zoo.parent, copy, ignore=shutil.ignore_patterns("runs"))
    recipe = load_recipe(copy / "glue.yaml")
    search_families(recipe)
    shutil.copy(copy / "models/ft-a/model.safetensors", copy / "models/ft-b/model.safetensors")
    with pytest.raises(RunConflict, match="models changed since this run began: ft-b"):
        glue(recipe)


def test_a_tokenizer_that_changed_under_a_run_is_refused(zoo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(zoo.parent, copy, ignore=shutil.ignore_patterns("runs"))
    recipe = load_recipe(copy / "glue.yaml")
    search_families(recipe)
    (copy / "models/ft-b/generation_config.json").write_text("{}")
    with pytest.raises(RunConflict, match="templates changed since this run began: ft-b"):
        glue(recipe)


def test_a_device_that_is_not_there_is_refused_before_any_work(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device: 'cudda' cannot be used"):
        glue(load_recipe(zoo, output=str(tmp_path / "run"), device="cudda"))
    assert not (tmp_path / "run").exists()


def test_with_ray_the_device_must_be_here_too(zoo: Path, tmp_path: Path) -> None:
    recipe = load_recipe(zoo, output=str(tmp_path / "run"), device="cudda", executor="ray")
    with pytest.raises(ConfigError, match=r"'cudda' cannot be used: .*the machine that starts"):
        glue(recipe)


def test_a_family_is_scored_and_written_with_the_bases_settings(zoo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(zoo.parent, copy, ignore=shutil.ignore_patterns("runs"))
    settings = copy / "models/ft-a/generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": 70, "pad_token_id": 0}))
    recipe = yaml.safe_load(zoo.read_text())
    recipe["models"] = ["models/ft-a", "models/ft-b", "models/ft-c"]
    recipe["search"] = {"strategies": ["heuristic_coefficient"], "validation": 0}
    (copy / "glue.yaml").write_text(yaml.safe_dump(recipe))
    outcome = glue(load_recipe(copy / "glue.yaml"))
    assert read_json(outcome.model / "generation_config.json")["eos_token_id"] == 2
    found = evaluate_model(
        str(outcome.model), [t.open() for t in load_recipe(copy / "glue.yaml").tasks]
    )
    row = next(row for row in outcome.report.table if row.name == "glued model")
    assert found.by_task() == pytest.approx(row.scores, abs=1e-6)


def test_everything_that_cannot_be_opened_is_told_at_once(zoo: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load(zoo.read_text())
    recipe["models"][1] = "models/ft-z"
    recipe["tasks"][0]["search"] = "tasks/gone.jsonl"
    path = zoo.parent / "broken.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output": str(tmp_path / "run")}))
    with pytest.raises(ConfigError) as caught:
        glue(load_recipe(path))
    told = str(caught.value)
    assert "ft-z" in told
    assert "gone.jsonl" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_and_bin_files_go_through_the_whole_recipe(zoo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(zoo.parent, copy, ignore=shutil.ignore_patterns("runs"))
    model = AutoModelForCausalLM.from_pretrained(copy / "models/base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(copy / "adapters/law")
    state = AutoModelForCausalLM.from_pretrained(copy / "models/ft-a").state_dict()
    torch.save(state, copy / "models/ft-a/pytorch_model.bin")
    (copy / "models/ft-a/model.safetensors").unlink()
    recipe = yaml.safe_load(zoo.read_text())
    recipe["models"] = ["models/base", "models/ft-a", "models/base+adapters/law"]
    recipe["search"] = {"strategies": ["heuristic_coefficient"], "validation": 0}
    (copy / "glue.yaml").write_text(yaml.safe_dump(recipe))
    outcome = glue(load_recipe(copy / "glue.yaml"))
    assert outcome.report.similarity.families == (("base", "ft-a", "base+law"),)
    scored = {row.name: row.average for row in outcome.report.table}
    assert len({scored[name] for name in ("base", "ft-a", "base+law")}) == 3


def _tasks_of(path: SearchPath) -> str:
    """The tasks that a search was for, where it was not all."""
    return path.strategy.partition(" for ")[2]


def test_a_family_is_merged_for_the_tasks_that_the_router_sends_it(
    whole: Outcome, zoo: Path
) -> None:
    manifest = read_json(whole.path / "stages/mixture/manifest.json")
    leads = manifest["leads"]["merged-1"]
    assert 0 < len(leads) < 4
    (winner,) = [path for path in whole.report.searches if path.winner]
    assert _tasks_of(winner) == ", ".join(leads)
    events = [json.loads(line) for line in (whole.path / "journal.jsonl").read_text().splitlines()]
    trials = [event for event in events if event.get("scope") in ("search-1", "refine-1")]
    assert len(trials) == len({json.dumps(event["coefficients"]) for event in trials})

    def at_leads(event: dict[str, Any]) -> float:
        tasks = [t for t in event["scores"]["tasks"] if t["task"] in leads]
        return sum(sum(t["values"]) / len(t["values"]) for t in tasks) / len(tasks)

    assert winner.score == pytest.approx(max(map(at_leads, trials)))


def _visible(root: Path) -> dict[str, bytes]:
    """Every file that is not hidden, by its place; hidden ones are no output."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts)
    }


def _result(run: Path) -> dict[str, Any]:
    report = {k: v for k, v in read_json(run / "report.json").items() if k not in TIMED}
    # Workers end in any order.
    trials = sorted((run / "journal.jsonl").read_text().splitlines())
    return {"report": report, "stages": _visible(run / "stages"), "trials": trials}


def _glue_silently(zoo: Path, output: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    glue(load_recipe(zoo, output=str(output)))


def _run(zoo: Path, output: Path, *, kill_after: float | None = None) -> float:
    """Glue in a process of its own, killed after so many seconds; how long it lived."""
    began = time.monotonic()
    process = FORK.Process(target=_glue_silently, args=(zoo, output))
    process.start()
    process.join(kill_after)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    elif process.exitcode:
        raise AssertionError(f"the run ended with {process.exitcode}")
    return time.monotonic() - began


def _kills(zoo: Path, whole: Outcome, folder: Path, *, times: int, seed: int) -> int:
    """Kill so many runs at random moments; each must leave nothing half and end the same."""
    expected = _result(whole.path)
    undisturbed = _run(zoo, folder / "timed")
    assert _result(folder / "timed") == expected
    rng = random.Random(seed)
    killed = 0
    for number in range(times):
        output = folder / f"run-{number}"
        _run(zoo, output, kill_after=rng.uniform(0.02, 0.98) * undisturbed)
        killed += not (output / "stages/done/manifest.json").exists()
        for place, content in _visible(output / "stages").items() if output.exists() else ():
            assert content == expected["stages"][place], f"{place} looks whole and is not"
        _run(zoo, output)
        assert _result(output) == expected
        shutil.rmtree(output)
    return killed


def test_a_killed_run_resumes_to_the_same_result(zoo: Path, whole: Outcome, tmp_path: Path) -> None:
    assert _kills(zoo, whole, tmp_path, times=3, seed=0) >= 1


@pytest.mark.slow
def test_thirty_killed_runs_resume_to_the_same_result(
    zoo: Path, whole: Outcome, tmp_path: Path
) -> None:
    assert _kills(zoo, whole, tmp_path, times=30, seed=1) >= 25


@pytest.mark.slow
def test_killed_evolutions_of_two_workers_resume_to_the_same_trials(
    zoo: Path, tmp_path: Path
) -> None:
    recipe = yaml.safe_load(zoo.read_text())
    evolution = {"strategy": "evolution", "trials": 24, "population": 6, "stages": 2}
    recipe["search"] = {**evolution, "blocks": 3, "validation": 0, "workers": 2}
    path = zoo.parent / "evolving.yaml"
    path.write_text(yaml.safe_dump(recipe))
    whole = glue(load_recipe(path, output=str(tmp_path / "whole")))
    (search, *_) = whole.report.searches
    assert sum(each.stopped for each in search.generations) > 0
    assert len(_result(whole.path)["trials"]) == len(set(_result(whole.path)["trials"]))
    assert _kills(path, whole, tmp_path, times=8, seed=2) >= 6
    alone = glue(load_recipe(path, output=str(tmp_path / "alone"), executor="serial"))
    assert _result(alone.path) == _result(whole.path)
