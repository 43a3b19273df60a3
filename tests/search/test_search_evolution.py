"""Evolution against closed forms, and against being disturbed."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import killed_evolution
import optuna
import pytest
from landscapes import BLOCKS, ITEMS, Watch, answered, near, objective, of_items, problem
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from modelglue.errors import ConfigError, EvaluationError
from modelglue.journal import Journal
from modelglue.search.executors import Evaluate, Job
from modelglue.search.executors.serial import Serial
from modelglue.search.executors.workers import processes
from modelglue.search.knobs import Knob
from modelglue.search.problem import Dial, Dials, Problem, Trial, canonical, options_of, search
from modelglue.search.result import SearchResult
from modelglue.search.sampler import Cloud, Sampler, stream
from modelglue.search.space import Space
from modelglue.search.trials import JournalledObjective

OFF = {"racing": "off"}
GOAL = {"a": 0.55, "b": 0.4, "c": 0.05, "d": 0.0}


def evolve(problem: Problem, **options: Any) -> SearchResult:
    return search("evolution", Problem(**{**vars(problem), "options": {**OFF, **options}}))


# Closed forms.


@pytest.mark.parametrize(("trials", "loss"), [(60, 2e-2), (120, 1e-3), (240, 1e-5)])
def test_the_best_of_four_weights_is_found(trials: int, loss: float) -> None:
    result = evolve(problem(GOAL, objective(near(GOAL))), trials=trials)
    assert result.score == near(GOAL)(result.coefficients)
    assert -result.score < loss
    assert sum(result.coefficients.values()) == pytest.approx(1)


def test_two_models_have_one_coordinate() -> None:
    result = evolve(problem("ab", objective(near({"a": 0.83}))), trials=60)
    assert result.coefficients["a"] == pytest.approx(0.83, abs=2e-3)


def test_what_changes_nothing_is_not_moved() -> None:
    asked: list[str] = []

    def score(coefficients: dict[str, float]) -> float:
        asked.extend(coefficients if len(coefficients) > 1 else ())
        return near({"a": 0.6, "b": 0.4})(coefficients)

    evolve(problem("abz", objective(score), dials=Dials(idle=("z",))), trials=30)
    assert set(asked) == {"a", "b"}


def test_every_group_finds_weights_of_its_own() -> None:
    goal = {"a [x]": 0.9, "b [x]": 0.1, "a [rest]": 0.3, "b [rest]": 0.7}
    dials = Dials(groups=("x", "rest"))
    result = evolve(problem("ab", objective(near(goal)), dials=dials), trials=150)
    assert {k: result.coefficients[k] for k in goal} == pytest.approx(goal, abs=0.02)


def test_a_curved_valley_is_followed_to_its_end() -> None:
    # Rosenbrock's, a tenth of its size so that the even start is outside it.
    def valley(coefficients: dict[str, float]) -> float:
        x, y = (10 * coefficients.get(name, 0.0) for name in "ab")
        return -(100 * (y - x * x) ** 2 + (1 - x) ** 2)

    dials = Dials(normalised=False, weight=0.0)
    result = evolve(problem("ab", objective(valley), dials=dials), trials=600)
    assert result.coefficients == pytest.approx({"a": 0.1, "b": 0.1}, abs=1e-3)


def test_densities_and_a_scale_are_found_within_their_ranges() -> None:
    dials = Dials(
        normalised=True,
        others=(
            Dial("density", 0.1, 1.0, 0.5, per_model=True),
            Dial("lambda", 0.0, 2.0, 1.0, per_model=False),
        ),
    )
    goal = {"a": 0.7, "density of a": 1.0, "density of b": 0.2, "lambda of *": 1.6}
    watch = Watch()
    result = evolve(problem("ab", objective(near(goal)), dials=dials, tell=watch), trials=300)
    assert {k: result.coefficients[k] for k in goal} == pytest.approx(goal, abs=0.05)
    for one in watch.tried:
        densities = [n for name, n in one.coefficients.items() if name.startswith("density")]
        assert all(0.1 <= density <= 1.0 for density in densities)


def test_t_is_searched_where_a_method_has_no_weights() -> None:
    dials = Dials(weighted=False, others=(Dial("t", 0.0, 1.0, 0.5, per_model=False),))
    result = evolve(problem("ab", objective(near({"t of *": 0.2})), dials=dials), trials=60)
    assert result.coefficients["t of *"] == pytest.approx(0.2, abs=5e-3)
    assert {Knob.parse(name).model for name in result.coefficients} == {"a", "b", "*"}


def test_the_end_of_a_range_is_reached() -> None:
    dials = Dials(weighted=False, others=(Dial("t", 0.0, 1.0, 0.5, per_model=False),))
    trying = objective(near({"t of *": 1.0}))
    result = evolve(problem("ab", trying, dials=dials), trials=80)
    assert result.coefficients["t of *"] == pytest.approx(1.0, abs=5e-3)
    assert result.trials == len(trying) <= 80


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_many_models_in_many_groups_still_gain(groups: int) -> None:
    names, labels = [f"m{i}" for i in range(16)], tuple(f"g{i}" for i in range(groups))
    draw = random.Random(0)
    goal = {}
    for label in labels:
        best = draw.sample(names, 3)
        goal |= {f"{n} [{label}]": 1 / 3 if n in best else 0.0 for n in names}
    dials = Dials(groups=labels)
    even = near(goal)(dict.fromkeys(names, 1 / 16))
    result = evolve(problem(names, objective(near(goal)), dials=dials), trials=400)
    assert result.score > {1: 0.1, 3: 0.25, 6: 0.4}[groups] * even


def test_a_method_without_anything_to_turn_is_tried_once() -> None:
    dials = Dials(weighted=False)
    result = evolve(problem("abc", objective(lambda c: len(c) / 3), dials=dials))
    assert (result.coefficients, result.trials) == (dict.fromkeys("abc", round(1 / 3, 12)), 4)


# What it is to end with.


def test_no_search_ends_below_the_best_single_model() -> None:
    def spiky(coefficients: dict[str, float]) -> float:
        return 1.0 if coefficients == {"c": 1.0} else near(GOAL)(coefficients)

    result = evolve(problem(GOAL, objective(spiky)), trials=60)
    assert (result.coefficients, result.score) == ({"c": 1.0}, 1.0)


def test_no_search_ends_below_the_even_mixture() -> None:
    even = dict.fromkeys(GOAL, 0.25)

    def spiky(coefficients: dict[str, float]) -> float:
        return 1.0 if coefficients == even else 0.0

    assert evolve(problem(GOAL, objective(spiky)), trials=20).coefficients == even


def test_of_equal_candidates_the_first_is_kept() -> None:
    result = evolve(problem("ba", objective(lambda coefficients: 0.5)), trials=40)
    assert result.coefficients == {"b": 1.0}


def test_one_model_is_its_own_best_merge() -> None:
    result = evolve(problem("a", objective(near(GOAL))))
    assert (result.coefficients, result.trials) == ({"a": 1.0}, 1)


@pytest.mark.parametrize("trials", [1, 5, 6, 7, 8, 20, 33])
def test_no_more_candidates_are_tried_than_allowed(trials: int) -> None:
    watch = Watch()
    trying = objective(near(GOAL))
    result = evolve(problem(GOAL, trying, tell=watch), trials=trials)
    # The single models and the even mixture are always looked at.
    assert result.trials == len(trying) == max(5, trials)
    assert len({json.dumps(one.coefficients) for one in watch.tried}) == result.trials


def test_where_only_two_can_be_merged_the_best_two_are() -> None:
    goal = {"a": 0.0, "b": 0.6, "c": 0.0, "d": 0.4}
    watch = Watch()
    evolve(problem(goal, objective(near(goal)), most=2, tell=watch), trials=40)
    assert {
        name for one in watch.tried if len(one.coefficients) > 1 for name in one.coefficients
    } == {"b", "d"}
    alone = evolve(problem(goal, objective(near(goal)), most=1))
    assert alone.coefficients == {"b": 1.0}


# Failures.


def fails_in_part(coefficients: dict[str, float]) -> float:
    """A third of the plane cannot be merged, the best places among it."""
    if len(coefficients) > 1 and coefficients.get("a", 0.0) > 0.45:
        return math.nan
    return near(GOAL)(coefficients)


def test_a_failed_candidate_is_reported_and_never_a_score() -> None:
    watch = Watch()
    result = evolve(problem(GOAL, objective(fails_in_part), tell=watch), trials=120)
    failed = [one for one in watch.tried if one.failure]
    assert failed
    assert all(one.failure == "the merge holds NaN" and not one.whole for one in failed)
    of_generations = sum(one.generation is not None for one in failed)
    assert sum(each.failed for each in result.generations) == of_generations > 0
    # The best that can be merged is at the border.
    assert result.coefficients["a"] == pytest.approx(0.45, abs=0.02)
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_race_goes_on_where_all_that_led_it_fail_in_the_end() -> None:
    def late(coefficients: Any, block: int | None) -> Trial:
        trial = answered(hill)(coefficients)
        if trial.scores is None or block is None:
            return trial
        fails = block == 3 and len(coefficients) > 1
        return Trial(None, "late") if fails else Trial(BLOCKS.part(trial.scores, block))

    trying = JournalledObjective(Serial(late), None, scope="", items=BLOCKS)
    result = evolve(problem(GOAL, trying), trials=40, racing="on", level=0.5)
    assert sum(each.stopped for each in result.generations) > 0
    assert sum(each.failed for each in result.generations) > 0
    assert result.trials == 40


def test_a_failed_candidate_is_told_as_the_worst() -> None:
    def moved(scores: Sequence[float]) -> list[float]:
        cloud = Cloud(
            Space(("a", "b", "c"), Dials()).start, 0.2, Space(tuple("abc"), Dials()).bounds
        )
        sampler = Sampler(cloud, 0)
        sampler.tell(sampler.ask(0), scores)
        return sampler.mean.tolist()

    scores = [0.1, 0.5, -math.inf, 0.3, 0.2, 0.4]
    assert moved(scores) == moved([0.1, 0.5, 0.01, 0.3, 0.2, 0.4])
    assert moved(scores) != moved([0.1, 0.5, 0.6, 0.3, 0.2, 0.4])


def test_where_every_merge_fails_the_best_single_model_is_left() -> None:
    def only_singles(coefficients: dict[str, float]) -> float:
        return math.nan if len(coefficients) > 1 else near(GOAL)(coefficients)

    result = evolve(problem(GOAL, objective(only_singles)), trials=60)
    assert result.coefficients == {"a": 1.0}
    assert all(each.best == -math.inf for each in result.generations)
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_where_no_model_can_be_scored_there_is_one_clear_error() -> None:
    with pytest.raises(EvaluationError, match=r"no model can be scored.*a: the merge holds NaN"):
        evolve(problem("ab", objective(lambda coefficients: math.nan)))


# Generations without a direction.


def test_on_a_plateau_it_starts_again_with_more_members_until_the_trials_are_used_up() -> None:
    result = evolve(problem("abc", objective(lambda coefficients: 0.5)), trials=100)
    assert result.trials == 100
    sizes = [each.candidates for each in result.generations]
    assert sizes[:4] == [6, 12, 24, 48]


def test_an_island_in_a_plateau_is_found_by_starting_again() -> None:
    def island(coefficients: dict[str, float]) -> float:
        return max(0.0, 0.15 + near({"a": 0.65, "b": 0.35})(coefficients))

    result = evolve(problem("abc", objective(island)), trials=250)
    assert result.score == pytest.approx(0.15, abs=1e-3)


def test_a_cloud_that_has_met_its_own_criteria_has_ended() -> None:
    space = Space(("a", "b"), Dials())
    sampler = Sampler(Cloud(space.start, 1 / 6, space.bounds), 0)
    generation = 0
    while not sampler.ended and generation < 300:
        points = sampler.ask(generation)
        sampler.tell(points, [-float(point @ point) for point in points])
        generation += 1
    assert sampler.ended
    assert sampler.again().members == 2 * sampler.members
    assert not sampler.again().ended


# Warm starts.


def test_a_warm_start_needs_fewer_trials() -> None:
    names = [f"m{i}" for i in range(8)]
    goal = dict(zip(names, [0.41, 0.33, 0.26, 0.0, 0.0, 0.0, 0.0, 0.0]))
    plain = evolve(problem(names, objective(near(goal))), trials=200)
    trying = objective(near(goal))
    warm = evolve(problem(names, trying), trials=100, warm_start="heuristic_average")
    assert warm.score >= plain.score
    assert warm.trials == len(trying) == 100


def test_a_result_that_stands_is_not_searched_again() -> None:
    trying = objective(near(GOAL))
    before = search("heuristic_coefficient", problem(GOAL, trying))
    results = {"heuristic_coefficient": before}
    warm = evolve(
        problem(GOAL, trying, results=results), trials=50, warm_start="heuristic_coefficient"
    )
    again = evolve(
        problem(GOAL, objective(near(GOAL))), trials=50, warm_start="heuristic_coefficient"
    )
    assert warm == again
    assert warm.trials == 50
    assert warm.score >= before.score


def test_a_warm_start_that_uses_up_the_trials_is_the_result() -> None:
    before = search("heuristic_coefficient", problem(GOAL, objective(near(GOAL))))
    result = evolve(
        problem(GOAL, objective(near(GOAL))), trials=10, warm_start="heuristic_coefficient"
    )
    assert (result.coefficients, result.trials) == (before.coefficients, before.trials)
    assert result.generations == ()


def test_layers_in_another_order_are_no_warm_start() -> None:
    path = SearchResult("data_flow", {"place 0 of a [layer 1]": 1.0}, 0.5, (), 3)
    with pytest.raises(ConfigError, match="reorders layers"):
        evolve(problem("ab", objective(near(GOAL)), results={"x": path}), warm_start="x")


# Fewer items.


def hill(coefficients: dict[str, float]) -> float:
    return 0.25 + 0.5 * math.exp(4 * near(GOAL)(coefficients))


@pytest.mark.parametrize(
    "options",
    [{}, {"racing": "on"}, {"stages": 3}, {"racing": "on", "stages": 2}, {"proxy": "irt"}],
    ids=str,
)
def test_what_is_returned_was_scored_on_all_items(options: dict[str, Any]) -> None:
    watch = Watch()
    result = evolve(problem(GOAL, of_items(hill), tell=watch), trials=60, **options)
    assert result.score == answered(hill)(result.coefficients).mean
    (best,) = {
        one.value for one in watch.tried if one.whole and one.coefficients == result.coefficients
    }
    assert best == result.score == max(one.value for one in watch.tried if one.whole)
    assert result.trials == 60


def test_racing_staging_and_estimating_take_fewer_items() -> None:
    def items(**options: Any) -> int:
        trying = of_items(hill)
        return evolve(problem(GOAL, trying), trials=80, **options).items

    whole = items()
    assert whole == 80 * ITEMS
    assert items(racing="on") < 0.9 * whole
    assert items(stages=3) < 0.7 * whole
    assert items(racing="on", stages=3) < 0.6 * whole
    assert items(proxy="irt") < 0.65 * whole


def test_early_stages_see_fewer_blocks_and_the_last_sees_all() -> None:
    watch = Watch()
    result = evolve(problem(GOAL, of_items(hill), tell=watch), trials=100, stages=3)
    seen = [{one.items for one in watch.members(g.number)} for g in result.generations]
    assert sorted(map(max, seen)) == [items for (items,) in seen]
    assert [seen[0], seen[-1]] == [{ITEMS // 4}, {ITEMS}]
    assert {ITEMS // 2} in seen


# The same whatever happens.


class Backwards:
    """An executor whose last job is done first."""

    workers = 4

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Trial]]:
        for index in reversed(range(len(jobs))):
            (found,) = Serial(evaluate).run([jobs[index]])
            yield index, found[1]

    def close(self) -> None:
        pass


def evaluate(coefficients: Any, block: int | None) -> Trial:
    trial = answered(noisy_hill)(coefficients)
    return (
        trial if block is None or trial.scores is None else Trial(BLOCKS.part(trial.scores, block))
    )


def noisy_hill(coefficients: Any) -> float:
    return (
        math.nan
        if coefficients.get("d", 0.0) > 0.5 and len(coefficients) > 1
        else hill(coefficients)
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "all items": {},
    "raced": {"racing": "on", "stages": 2},
    "estimated, from a heuristic": {"proxy": "irt", "warm_start": "greedy_soup"},
}


def run(journal: Path, executor: Any, watch: Watch, **options: Any) -> SearchResult:
    with Journal(journal) as opened:
        trying = JournalledObjective(executor, opened, scope="s", items=BLOCKS)
        return evolve(problem(GOAL, trying, seed=3, tell=watch), trials=40, **options)


def trials_in(journal: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    found = {json.dumps([r["coefficients"], r["block"]]): r for r in records}
    assert len(found) == len(records)
    return found


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_side_by_side_is_one_after_the_other(options: dict[str, Any], tmp_path: Path) -> None:
    serial, parallel = Watch(), Watch()
    expected = run(tmp_path / "serial", Serial(evaluate), serial, **options)
    assert run(tmp_path / "parallel", Backwards(), parallel, **options) == expected
    assert serial.calls == parallel.calls
    assert trials_in(tmp_path / "serial") == trials_in(tmp_path / "parallel")


def test_in_processes_beside_this_one_it_is_the_same(tmp_path: Path) -> None:
    serial, parallel = Watch(), Watch()
    expected = run(tmp_path / "serial", Serial(make()), serial, racing="on")
    with closing(processes(make, workers=2)) as executor:
        assert run(tmp_path / "parallel", executor, parallel, racing="on") == expected
    assert serial.calls == parallel.calls
    assert trials_in(tmp_path / "serial") == trials_in(tmp_path / "parallel")


def make() -> Evaluate:
    return evaluate


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_stopped_at_any_trial_it_goes_on_to_the_same_end(
    options: dict[str, Any], tmp_path: Path
) -> None:
    undisturbed = Watch()
    expected = run(tmp_path / "whole", Serial(evaluate), undisturbed, **options)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for stop in sorted(random.Random(0).sample(range(len(lines)), 5)):
        journal, watch = tmp_path / f"stopped-{stop}", Watch()
        journal.write_bytes(b"".join(lines[:stop]) + lines[stop][:20])
        assert run(journal, Serial(evaluate), watch, **options) == expected
        assert watch.calls == undisturbed.calls
        assert journal.read_bytes() == (tmp_path / "whole").read_bytes()


def test_another_seed_is_another_search_and_the_same_one_the_same() -> None:
    def tried(seed: int) -> list[Any]:
        watch = Watch()
        evolve(problem(GOAL, objective(near(GOAL)), seed=seed, tell=watch), trials=20)
        return watch.tried

    assert tried(1) == tried(1)
    assert tried(1)[:5] == tried(2)[:5]
    assert tried(1)[5:] != tried(2)[5:]


def test_members_have_streams_of_their_own() -> None:
    streams = [stream(s, g, m) for s in range(3) for g in range(10) for m in range(10)]
    assert len(set(streams)) == len(streams)
    assert stream(0, 1, 2) == 4052747781


def test_a_member_is_the_same_whoever_is_asked_for_beside_it() -> None:
    space = Space(tuple("abcd"), Dials())
    few = Sampler(Cloud(space.start, 0.2, space.bounds, 4), 0).ask(7)
    many = Sampler(Cloud(space.start, 0.2, space.bounds, 9), 0).ask(7)
    assert [point.tolist() for point in many[:4]] == [point.tolist() for point in few]


def kill_after(folder: Path, trials: int, seconds: float, *, mirrored: bool) -> None:
    """Run it, and kill it so many seconds after so many trials stand."""
    script = [sys.executable, killed_evolution.__file__, str(folder)]
    process = subprocess.Popen([*script, *(["mirrored"] if mirrored else [])])
    journal = folder / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < trials:
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def finished(folder: Path, *, mirrored: bool) -> tuple[Any, dict[str, Any]]:
    found = killed_evolution.evolve(folder, nap=0, mirrored=mirrored)
    return found, trials_in(folder / "journal.jsonl")


def kill_and_compare(tmp_path: Path, kills: int, *, mirrored: bool = False) -> None:
    draw = random.Random(kills)
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "killed").mkdir()
    expected = finished(tmp_path / "undisturbed", mirrored=mirrored)
    for trials in sorted(draw.sample(range(len(expected[1]) - 10), kills)):
        kill_after(tmp_path / "killed", trials, draw.uniform(0, 0.02), mirrored=mirrored)
    assert len(trials_in(tmp_path / "killed" / "journal.jsonl")) < len(expected[1])
    assert finished(tmp_path / "killed", mirrored=mirrored) == expected


def test_killed_three_times_it_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 3)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, 20, mirrored=True)
    undisturbed, resumed = (
        optuna.load_study(
            study_name="evolution",
            storage=JournalStorage(JournalFileBackend(str(tmp_path / name / "study.log"))),
        ).trials
        for name in ("undisturbed", "killed")
    )
    assert [t.params for t in resumed] == [t.params for t in undisturbed]
    assert [t.user_attrs for t in resumed] == [t.user_attrs for t in undisturbed]


# Options.


def test_every_option_has_a_default_within_its_range() -> None:
    for option in options_of("evolution").values():
        if option.default is not None and option.low is not None:
            assert option.low <= option.default <= (option.high or math.inf)
        assert not option.choices or option.default in option.choices


def test_candidates_are_spelled_canonically() -> None:
    watch = Watch()
    evolve(problem(GOAL, objective(near(GOAL)), tell=watch), trials=30)
    assert all(canonical(one.coefficients) == one.coefficients for one in watch.tried)
