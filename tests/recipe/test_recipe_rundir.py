"""What stands in a run directory stands whole, and belongs to one recipe and one process."""

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from modelglue.errors import OutputExists, RunConflict
from modelglue.recipe.rundir import RunDirectory

RECIPE = {"models": ["a"], "output": "runs/x"}


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    calls = []

    def work(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        (folder / "artifact").write_text("x")
        return {"value": 1}

    for _ in range(2):
        with RunDirectory(tmp_path / "run", RECIPE) as run:
            assert run.stage("first", work) == {"value": 1}
    assert len(calls) == 1
    assert (calls[0] / "artifact").read_text() == "x"


def test_a_stage_that_broke_starts_again_in_an_empty_folder(tmp_path: Path) -> None:
    def breaks(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    def works(folder: Path) -> dict[str, Any]:
        return {"found": [path.name for path in folder.iterdir()]}

    with pytest.raises(KeyboardInterrupt), RunDirectory(tmp_path / "run", RECIPE) as run:
        run.stage("first", breaks)
    with RunDirectory(tmp_path / "run", RECIPE) as run:
        assert not run.done("first")
        assert run.stage("first", works) == {"found": []}


def test_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", RECIPE).__exit__(None, None, None)
    with pytest.raises(RunConflict, match="models differ"):
        RunDirectory(tmp_path / "run", {**RECIPE, "models": ["b"]})


def test_who_works_and_where_may_change_under_a_run(tmp_path: Path) -> None:
    search = {"strategy": "greedy_soup", "executor": "ray", "workers": 4, "storage": None}
    with RunDirectory(tmp_path / "run", {**RECIPE, "search": search}):
        pass
    others = {"executor": "serial", "workers": 1, "storage": "sqlite:///s", "address": "host:1"}
    with RunDirectory(tmp_path / "run", {**RECIPE, "search": {**search, **others}}):
        pass
    with pytest.raises(RunConflict, match="search differ"):
        RunDirectory(tmp_path / "run", {**RECIPE, "search": {**search, "seed": 1}})


def test_a_run_keeps_its_id_and_another_in_its_place_has_another(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        for _ in range(2):
            with RunDirectory(tmp_path / "run", RECIPE) as run:
                ids.append(run.id)
        shutil.rmtree(tmp_path / "run")
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExists, match=r"thesis\.tex"):
        RunDirectory(tmp_path, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def _open(path: Path, results: Any) -> None:
    try:
        RunDirectory(path, RECIPE)
    except RunConflict as error:
        results.put(str(error))
    else:
        results.put("opened")


def test_a_second_process_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with RunDirectory(tmp_path / "run", RECIPE):
        other = context.Process(target=_open, args=(tmp_path / "run", results))
        other.start()
        assert "another process" in results.get(timeout=60)
        other.join()
