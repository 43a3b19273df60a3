"""The study that Optuna shows holds what the search did, and nothing twice."""

import math
import os
import sqlite3
import time
from contextlib import closing, suppress
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
from modelglue.search.study import Mirror, Study, storage_problem, write_study

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
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    os.symlink(path, f"{path}.lock")
    started = time.monotonic()
    write_study(path, "evolution", watch.tried)
    assert time.monotonic() - started < 5
    assert len(load(path).trials) == len(
        {(str(one.coefficients), one.generation) for one in watch.tried}
    )
    assert path.read_bytes().startswith(whole[: whole[:-1].rfind(b"\n")])
    assert list(tmp_path.iterdir()) == [path]


def test_a_study_damaged_in_the_middle_is_set_aside_and_made_anew(tmp_path: Path) -> None:
    path, watch = tmp_path / "study.log", Watch()
    evolve(watch)
    write_study(path, "evolution", watch.tried)
    whole = load(path).trials
    data = path.read_bytes()
    damaged = data[:200] + b"\0\0\0" + data[203:]
    for number in (1, 2):
        path.write_bytes(damaged)
        write_study(path, "evolution", watch.tried)
        assert [t.params for t in load(path).trials] == [t.params for t in whole]
        assert (tmp_path / f"study.log.damaged-{number}").read_bytes() == damaged


@pytest.mark.parametrize("kind", ["database", "text", "json lines", "binary"])
def test_a_file_that_is_something_else_is_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    if kind == "database":
        write_study(f"sqlite:///{path}", "mine", [Tried({"a": 1.0}, 0.5)])
    else:
        path.write_bytes(
            {"text": b"my notes", "json lines": b'{"id": 1}\n', "binary": b"\0\n\n"}[kind]
        )
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"optuna\.db is no journal of Optuna's"):
        Study(path, "evolution")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_the_first_line_was_written_is_mended(tmp_path: Path) -> None:
    write_study(tmp_path / "study.log", "evolution", [])
    (line,) = (tmp_path / "study.log").read_bytes().splitlines(keepends=True)
    for size in (0, 1, 5, 30, len(line) - 1):
        (tmp_path / "torn.log").write_bytes(line[:size])
        write_study(tmp_path / "torn.log", "evolution", [Tried({"a": 1.0}, 0.5)])
        assert len(load(tmp_path / "torn.log").trials) == 1


def test_strategies_have_studies_of_their_own_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    results = {}
    for strategy in ("heuristic_coefficient", "greedy_soup", "evolution"):
        with closing(Study(path, strategy)) as study:
            given = problem(GOAL, objective(near(GOAL)), tell=study.add)
            more = {**vars(given), "options": {"trials": 30}}
            results[strategy] = search(strategy, Problem(**more))
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
    assert (storage_problem(url) or "").startswith(f"search.storage: {url} cannot be used: ")


def test_a_database_that_can_be_used_is_let_go_of(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    assert storage_problem(f"sqlite:///{path}") is None
    assert not opened(path)
    study = Study(f"sqlite:///{path}", "evolution")
    study.add([Tried({"a": 1.0}, 0.5)])
    assert opened(path)
    study.close()
    assert not opened(path)


def opened(path: Path) -> bool:
    """Whether this process has a file open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(descriptor))
    return str(path) in found


def test_a_database_that_breaks_in_mid_search_ends_the_mirror_and_not_the_search(
    tmp_path: Path,
) -> None:
    path, notes, watch = tmp_path / "study.db", list[str](), Watch()

    def tell(tried: Any) -> None:
        if len(watch.calls) == 2:
            with closing(sqlite3.connect(path)) as broken:
                broken.execute("DROP TABLE trial_values")
        watch(tried)
        mirror.add(tried)

    with closing(Mirror(f"sqlite:///{path}", "evolution", note=notes.append)) as mirror:
        assert evolve(tell, trials=30) == evolve(Watch(), trials=30)
    assert len(watch.calls) > 3
    (note,) = notes
    assert note.startswith("The Optuna study 'evolution' is not whole: ")
    assert "trial_values" in note
    assert not opened(path)


def test_a_database_that_is_never_there_is_one_note() -> None:
    notes = list[str]()
    mirror = Mirror("sqlite:////no/such/folder/study.db", "evolution", note=notes.append)
    evolve(mirror.add, trials=8)
    assert len(notes) == 1


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
    # Nor is anything read again, however long the file has grown.
    monkeypatch.delattr(JournalFileBackend, "read_logs")
    study.add([Tried({"a": i / 9}, 0.5, generation=0, member=i) for i in range(9)])
    assert calls == [9]
