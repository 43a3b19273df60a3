"""A family in other processes scores as it does in this one."""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import station_samples
import torch

from modelglue.evaluate.devices import dispatched
from modelglue.evaluate.scores import Scores
from modelglue.recipe.config import RecipeConfig, parse_recipe
from modelglue.recipe.division import Parts, divide
from modelglue.recipe.inputs import open_inputs
from modelglue.recipe.rundir import RunDirectory
from modelglue.recipe.search_config import SearchConfig
from modelglue.recipe.session import Session
from modelglue.recipe.workers import (
    ACCEPT,
    Families,
    Station,
    blocks_of,
    device_of,
    parts_of,
    sharers_of,
)
from modelglue.report.events import silent
from modelglue.search.executors import Job
from modelglue.search.executors.bench import Seat
from modelglue.search.executors.ray import connect
from modelglue.search.trials import JournalledObjective

WORDS = "river stone cloud amber violin harbour maple engine lantern copper".split()
MEMBERS = ("ft0", "ft1", "ft2")
CANDIDATES = [{"ft0": 1.0}, {"ft0": 0.5, "ft1": 0.5}, {"ft0": 0.2, "ft1": 0.3, "ft2": 0.5}]


@pytest.fixture
def config(
    llamas: list[Path], tmp_path: Path, write_jsonl: Callable[[str, list[dict[str, Any]]], Path]
) -> RecipeConfig:
    tasks = []
    for task, count in (("choice", 14), ("story", 9)):
        files = {
            split: write_jsonl(
                f"{task}.{split}.jsonl", [_item(task, split, i) for i in range(count)]
            )
            for split in ("search", "report")
        }
        kind = {"choice": "multiple_choice", "story": "text"}[task]
        tasks.append({"name": task, "kind": kind, **files})
    return parse_recipe(
        {
            "models": [str(path) for path in llamas[1:]],
            "base": str(llamas[0]),
            "tasks": [{k: str(v) for k, v in task.items()} for task in tasks],
            "output": "run",
            "search": {"strategy": "heuristic_average", "executor": "workers", "workers": 2},
        },
        root=tmp_path,
    )


def _item(task: str, split: str, i: int) -> dict[str, Any]:
    first, second = WORDS[i % 10], WORDS[(3 * i + 1) % 10]
    item = {"id": f"{task} {split} {i}", "group": f"{split} {i // 2}"}
    if task == "story":
        return {**item, "text": f"{split} {i} {first}", "reference": f" {second}"}
    choices = [f"{first} {i}", f"{second} {split}", "neither"]
    return {**item, "prompt": f"{split} {i} {first}", "choices": choices, "answer": i % 3}


@pytest.fixture
def session(config: RecipeConfig) -> Iterator[Session]:
    with open_inputs(config) as inputs, RunDirectory(config.output, config.to_mapping()) as run:
        yield Session(config, inputs, run, silent)


def parts(session: Session) -> dict[int | None, Parts]:
    division = divide(session.inputs.tasks, 0.3)
    blocks = blocks_of(session.inputs.tasks, division.propose, 2)
    proposing = parts_of(session.inputs.tasks, division.propose, blocks)
    return {**proposing, ACCEPT: division.accept}


def trials(session: Session) -> list[Scores | None]:
    tasks = session.inputs.tasks
    jobs = [Job(each, block) for each in CANDIDATES for block in (None, 0, 1, ACCEPT)]
    with closing(session.executor(MEMBERS, tasks, parts(session))) as executor:
        made = dict(executor.run(jobs))
    return [made[index].scores for index in range(len(jobs))]


def test_two_workers_score_as_this_process_does(session: Session) -> None:
    apart = trials(session)
    search = replace(session.config.search, executor="serial")
    session.config = replace(session.config, search=search)
    assert trials(session) == apart
    assert None not in apart
    assert len({scores.mean for scores in apart[::4] if scores}) == len(CANDIDATES)


@pytest.mark.slow
def test_actors_score_as_this_process_does_though_one_is_killed(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    search = replace(session.config.search, executor="serial")
    session.config = replace(session.config, search=search)
    expected = trials(session)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setattr("modelglue.recipe.session.Station", station_samples.Mortal)
    session.config = replace(session.config, search=replace(search, executor="ray", workers=2))
    assert connect("local")
    try:
        assert trials(session) == expected
    finally:
        ray.shutdown()
    assert (session.config.root / "killed").exists()


def test_the_blocks_of_a_candidate_make_up_its_full_scores(session: Session) -> None:
    session.config = replace(
        session.config, search=replace(session.config.search, executor="serial")
    )
    tasks, cut = session.inputs.tasks, parts(session)
    blocks = blocks_of(tasks, cut[None], 2)
    with closing(session.executor(MEMBERS, tasks, cut)) as executor:
        whole = JournalledObjective(executor, None, scope="a", items=blocks)
        joined = JournalledObjective(executor, None, scope="b", items=blocks)
        for block in (1, 0):
            joined.many(CANDIDATES, block)
        for candidate in CANDIDATES:
            expected, found = whole(candidate).scores, joined(candidate).scores
            assert expected is not None
            assert found is not None
            for task in expected.tasks:
                assert found[task.task].items == task.items
                assert found[task.task].groups == task.groups
                # Rows that are batched with others differ in the last bits of a float.
                assert found[task.task].values == pytest.approx(task.values, rel=1e-5)
        assert joined.evaluated == 2 * len(CANDIDATES)


def test_every_item_is_in_one_block_with_all_of_its_group(session: Session) -> None:
    tasks, cut = session.inputs.tasks, parts(session)
    whole = cut[None]
    for task in tasks:
        found = [cut[block][task.name] for block in (0, 1)]
        assert sorted(found[0] + found[1]) == sorted(whole[task.name])
        groups = [{task.items("search")[i].group for i in indices} for indices in found]
        assert not groups[0] & groups[1]
        assert all(indices == tuple(sorted(indices)) for indices in found)


def test_what_a_worker_needs_survives_the_way_to_it(session: Session) -> None:
    station = Station(session.config, session.run.folder("adapters"), MEMBERS, ("choice",), {})
    assert pickle.loads(pickle.dumps(station)) == station


def test_workers_on_one_machine_share_its_gpus_evenly() -> None:
    def at(device: str, index: int, count: int, **seat: bool) -> str:
        return device_of(device, Seat(index, **seat), lambda: count)

    assert [at("cuda", i, 2) for i in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert at("cuda:1", 4, 2) == "cuda:1"  # the user's choice
    assert at("cpu", 1, 2) == "cpu"
    assert at("cuda", 1, 0) == "cuda"  # the message that there is none comes from elsewhere
    assert at("cuda", 1, 2, sees_all=False) == "cuda"  # Ray has chosen


def test_workers_on_one_device_have_its_memory_in_equal_shares() -> None:
    def at(device: str, workers: int, count: int, gpus: float = 0.0, **seat: bool) -> int:
        search = SearchConfig(workers=workers, gpus_per_worker=gpus)
        return sharers_of(device, Seat(0, **seat), search, lambda: count)

    assert [at("cuda", workers, 2) for workers in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert at("cuda:1", 4, 2) == 4  # the user's choice
    assert at("cpu", 4, 2) == 4
    assert at("cuda", 4, 0) == 4
    # Of what Ray shows a worker.
    assert [at("cuda", 8, 1, share, sees_all=False) for share in (0, 1, 0.5, 0.3)] == [1, 1, 2, 3]
    assert at("cuda", 2, 1, 0.25, sees_all=False) == 2
    assert at("cuda", 8, 2, 2, sees_all=False) == 1


def test_a_share_of_the_memory_goes_to_weights_and_batches_alike(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelglue.recipe.workers.memory_of", lambda device: 1000)
    families = Families(session.config, session.inputs, session.run.folder("a"), MEMBERS, 4)
    family = families.of(MEMBERS)
    assert family._memory == 125
    assert family.model({"ft0": 0.5, "ft1": 0.5}).sharers == 4


def test_a_model_spread_over_gpus_is_searched_as_in_one_piece(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the GPUs: a module that accelerate has put hooks on."""
    serial = replace(session.config.search, executor="serial")
    session.config = replace(session.config, search=serial)
    expected = trials(session)
    asked = []

    def spread(module: Any, gpus: int) -> Any:
        asked.append(gpus)
        parts = ("model.embed_tokens", "model.rotary_emb", "model.layers", "model.norm", "lm_head")
        return dispatched(module, dict.fromkeys(parts, "cpu"))

    monkeypatch.setattr("modelglue.evaluate.huggingface.spread", spread)
    session.config = replace(session.config, search=replace(serial, gpus_per_worker=2))
    session._held = None
    family = session.family(MEMBERS)
    assert family._memory is None  # what each GPU holds is found out there
    assert trials(session) == expected
    assert family.similarity(CANDIDATES[1], "ft0") > 0.9
    assert asked == [2, 2]  # a single model, and what is merged into


def test_a_worker_keeps_to_its_threads(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr("modelglue.recipe.workers.seat", lambda: Seat(1, 3))
    station = Station(
        session.config, session.run.folder("adapters"), MEMBERS, ("story",), parts(session)
    )
    (scored,) = (station()(CANDIDATES[0], 0).scores or Scores(())).tasks
    assert scored.task == "story"
    assert used[:2] == [3, 1]  # its own share; then one, as these models are small
    assert torch.get_num_threads() == before
