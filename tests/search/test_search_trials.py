"""Trials are written down at once and never made twice."""

from collections.abc import Mapping
from pathlib import Path

from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.journal import Journal
from modelglue.search.problem import Problem, search
from modelglue.search.trials import JournalledObjective


class Objective:
    """Counts how often it is asked."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.asked: list[dict[str, float]] = []
        self.fail_after = fail_after

    def __call__(self, coefficients: Mapping[str, float]) -> Scores:
        if len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked.append(dict(coefficients))
        near = 1 - abs(coefficients.get("b", 0.0) - 0.4) - coefficients.get("c", 0.0)
        return Scores((TaskScores("t", ("1", "2"), (near, near / 2)),))


def run(journal: Path, objective: Objective) -> object:
    with Journal(journal) as opened:
        trials = JournalledObjective(objective, opened, scope="s")
        return search(
            "heuristic_coefficient", Problem(("a", "b", "c"), trials, lambda c, name: 0.0)
        )


def test_no_candidate_is_evaluated_twice_by_several_strategies(tmp_path: Path) -> None:
    objective = Objective()
    with Journal(tmp_path / "j") as journal:
        trials = JournalledObjective(objective, journal, scope="s")
        for strategy in ("heuristic_average", "heuristic_coefficient", "heuristic_average"):
            search(strategy, Problem(("a", "b", "c"), trials, lambda c, name: 0.0))
    keys = [tuple(sorted(asked.items())) for asked in objective.asked]
    assert len(keys) == len(set(keys)) == len(trials)


def test_a_search_stopped_anywhere_goes_on_to_the_same_end(tmp_path: Path) -> None:
    undisturbed = Objective()
    expected = run(tmp_path / "whole", undisturbed)
    for stop in range(len(undisturbed.asked)):
        first, second = Objective(fail_after=stop), Objective()
        journal = tmp_path / f"stopped-{stop}"
        try:
            run(journal, first)
        except KeyboardInterrupt:
            assert run(journal, second) == expected
            assert first.asked + second.asked == undisturbed.asked
            assert journal.read_bytes() == (tmp_path / "whole").read_bytes()
            continue
        raise AssertionError("the search was to be stopped")


def test_trials_of_an_earlier_scope_serve_at_the_tasks_that_are_asked_for(tmp_path: Path) -> None:
    def both(coefficients: Mapping[str, float]) -> Scores:
        return Scores((TaskScores("t", ("1",), (0.2,)), TaskScores("u", ("1",), (0.8,))))

    later = Objective()
    with Journal(tmp_path / "j") as journal:
        JournalledObjective(both, journal, scope="all")({"a": 1.0})
        narrowed = JournalledObjective(later, journal, scope="some", earlier=("all",), tasks=("u",))
        assert narrowed({"a": 1.0}).by_task() == {"u": 0.8}
    assert later.asked == []


def test_trials_of_another_scope_do_not_count(tmp_path: Path) -> None:
    first, second = Objective(), Objective()
    with Journal(tmp_path / "j") as journal:
        JournalledObjective(first, journal, scope="family 0")({"a": 1.0})
        JournalledObjective(second, journal, scope="family 1")({"a": 1.0})
    assert len(first.asked) == len(second.asked) == 1
