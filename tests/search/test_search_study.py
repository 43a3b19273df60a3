"""The study that Optuna shows holds what the search did, and nothing twice."""

import math
import os
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from landscapes import Watch, near, objective, of_items, problem
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from modelglue.errors import ConfigError
from modelglue.search.problem import Problem, Tried, search
from modelglue.search.result import SearchResult
from modelglue.search.study import Study, write_study

GOAL = {"a": 0.55, "b": 0.4, "c": 0.05}


def hill(coefficients: Any) -> float:
    if len(coefficients) > 1 and coefficients.get("c", 0.0) > 0.45:
        return math.nan
    return 0.25 + 0.5 * math.exp(4 * near(GOAL)(coefficients))


def evolve(tell: Any, **options: Any) -> SearchResult:
    given = {"trials": 60, "stages": 2, **options}
    return search("evolution", problem(GOAL, of_items(hill), tell=tell, options=given))


def load(path: Path, name: str = "evolution") -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=name, storage=storage)


def test_all_trials_are_there_and_the_best_is_ours(tmp_path: Path) -> None:
    path, watch = tmp_path / "study.log", Watch()
    study = Study(path, "evolution")

    def tell(tried: Any) -> None:
        watch(tried)
        study.add(tried)

    result = evolve(tell)
    found = load(path)
    assert found.best_value == result.score
    assert found.best_params == result.coefficients
    whole = {str(t.params): t.value for t in found.get_trials(states=[TrialState.COMPLETE])}
    assert whole == {str(one.coefficients): one.value for one in watch.tried if one.whole}
    pruned = found.get_trials(states=[TrialState.PRUNED])
    told = [one for one in watch.tried if not one.whole and one.failure is None]
    assert [(t.value, t.params, t.user_attrs["stopped"]) for t in pruned] == [
        (one.value, one.coefficients, one.stopped) for one in told
    ]
    failed = found.get_trials(states=[TrialState.FAIL])
    assert len(failed) == sum(one.failure is not None for one in watch.tried) > 0
    assert {trial.user_attrs["failure"] for trial in failed} == {"the merge holds NaN"}


def test_generation_member_and_items_stand_beside_a_trial(tmp_path: Path) -> None:
    watch = Watch()
    evolve(watch)
    write_study(tmp_path / "study.log", "evolution", watch.members(1))
    attributes = [trial.user_attrs for trial in load(tmp_path / "study.log").trials]
    assert [each["generation"] for each in attributes] == [1] * len(attributes)
    assert [each["member"] for each in attributes] == list(range(len(attributes)))
    assert [each["items"] for each in attributes] == [one.items for one in watch.members(1)]


def test_told_again_nothing_is_added(tmp_path: Path) -> None:
    path, watch = tmp_path / "study.log", Watch()
    evolve(watch)
    write_study(path, "evolution", watch.tried[:20])
    write_study(path, "evolution", watch.tried)
    before = path.read_bytes()
    write_study(path, "evolution", watch.tried)
    assert path.read_bytes() == before
    once = tmp_path / "once.log"
    write_study(once, "evolution", watch.tried)
    assert [t.params for t in load(path).trials] == [t.params for t in load(once).trials]


def test_a_kill_in_the_middle_of_writing_is_mended(tmp_path: Path) -> None:
    path, watch = tmp_path / "study.log", Watch()
    evolve(watch)
    write_study(path, "evolution", watch.tried[:30])
    # Half a line, and the lock held.
    path.write_bytes(path.read_bytes()[:-40])
    os.symlink(path, f"{path}.lock")
    started = time.monotonic()
    write_study(path, "evolution", watch.tried)
    assert time.monotonic() - started < 5
    assert len(load(path).trials) == len(
        {(str(one.coefficients), one.generation) for one in watch.tried}
    )


def test_a_study_damaged_in_the_middle_is_made_anew(tmp_path: Path) -> None:
    path, watch = tmp_path / "study.log", Watch()
    evolve(watch)
    write_study(path, "evolution", watch.tried)
    whole = load(path).trials
    data = path.read_bytes()
    path.write_bytes(data[:200] + b"\0\0\0" + data[203:])
    write_study(path, "evolution", watch.tried)
    assert [t.params for t in load(path).trials] == [t.params for t in whole]


def test_strategies_have_studies_of_their_own_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    results = {}
    for strategy in ("heuristic_coefficient", "greedy_soup", "evolution"):
        given = problem(GOAL, objective(near(GOAL)), tell=Study(path, strategy).add)
        results[strategy] = search(strategy, Problem(**{**vars(given), "options": {"trials": 30}}))
    for strategy, result in results.items():
        assert load(path, strategy).best_value == result.score
        assert len(load(path, strategy).trials) == result.trials


def test_a_database_holds_the_same(tmp_path: Path) -> None:
    watch = Watch()
    evolve(watch, trials=8)
    url = f"sqlite:///{tmp_path}/study.db"
    for told in (watch.tried[:3], watch.tried):
        write_study(url, "evolution", told)
    write_study(tmp_path / "study.log", "evolution", watch.tried)
    found = optuna.load_study(study_name="evolution", storage=url)
    assert [(t.params, t.value) for t in found.trials] == [
        (t.params, t.value) for t in load(tmp_path / "study.log").trials
    ]


@pytest.mark.parametrize("url", ["nonsense://here", "sqlite:////no/such/folder/study.db"])
def test_a_database_that_cannot_be_used_is_one_clear_error(url: str) -> None:
    with pytest.raises(ConfigError, match=f"search.storage: {url} cannot be used: "):
        Study(url, "evolution")


def test_numbers_of_any_size_can_be_shown(tmp_path: Path) -> None:
    sizes = [0.0, 1e-9, 0.5, -0.5, 1.0, -1.0, 1.5, 63.9, -64.0, 1e6]
    told = [Tried({"a": size}, 0.5, generation=0, member=i) for i, size in enumerate(sizes)]
    write_study(tmp_path / "study.log", "sizes", told)
    assert [t.params["a"] for t in load(tmp_path / "study.log", "sizes").trials] == sizes


def test_optunas_own_lines_are_kept_back_and_its_settings_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = optuna.logging.get_verbosity()
    write_study(tmp_path / "study.log", "quiet", [Tried({"a": 1.0}, 0.5)])
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


def test_a_generation_is_written_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path / "study.log", "evolution")
    calls: list[int] = []
    append = JournalFileBackend.append_logs

    def counted(self: JournalFileBackend, logs: list[Any]) -> None:
        calls.append(len(logs))
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", counted)
    study.add([Tried({"a": i / 9}, 0.5, generation=0, member=i) for i in range(9)])
    assert calls == [9]
