"""Paths of layers: what a move does, and that a known best path is found."""

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from landscapes import ITEMS, Watch, answered, as_scores, objective, of_items, problem

from modelglue.errors import ConfigError
from modelglue.journal import Journal
from modelglue.search.executors.serial import Serial
from modelglue.search.knobs import Knob
from modelglue.search.problem import Dials, Problem, Trial, models_of, search
from modelglue.search.result import SearchResult
from modelglue.search.strategies import data_flow
from modelglue.search.strategies.data_flow import Limits, Place, moved, spelled
from modelglue.search.trials import JournalledObjective

DEPTH = 6
BEST = [("a", 0), ("a", 1), ("b", 2), ("b", 3), ("b", 3), ("a", 4), ("a", 5)]
"""Two layers of another model in the middle, the second of them twice."""


def path_of(coefficients: Mapping[str, float]) -> list[tuple[str, int]]:
    """The layers, in their order."""
    if len(coefficients) == 1:
        (name,) = coefficients
        return [(name, layer) for layer in range(DEPTH)]
    knobs = sorted(map(Knob.parse, coefficients), key=lambda k: int(k.parameter.split()[1]))
    assert [knob.parameter for knob in knobs] == [f"place {i}" for i in range(len(knobs))]
    return [(knob.model, int(knob.group.removeprefix("layer "))) for knob in knobs]


def distance(a: list[Any], b: list[Any]) -> int:
    """Levenshtein's."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def nearness(coefficients: Mapping[str, float]) -> float:
    return 1 - distance(path_of(coefficients), BEST) / 10


def flow(trying: Any, **more: Any) -> SearchResult:
    options = more.pop("options", {})
    given = problem("ab", trying, dials=Dials(layers=DEPTH), **more)
    return search("data_flow", Problem(**{**vars(given), "options": options}))


def test_the_best_path_is_found() -> None:
    result = flow(objective(nearness), options={"trials": 400})
    assert path_of(result.coefficients) == BEST
    assert result.score == 1
    assert models_of(result.coefficients) == ("a", "b")


def test_it_begins_with_the_best_models_own_layers_and_never_ends_below_them() -> None:
    watch = Watch()
    result = flow(objective(lambda c: float(c == {"b": 1.0})), tell=watch, options={"trials": 30})
    assert result.coefficients == {"b": 1.0}
    first = [path_of(one.coefficients) for one in watch.members(0)]
    own = [("b", layer) for layer in range(DEPTH)]
    assert all(0 <= distance(path, own) <= DEPTH for path in first)
    assert sum(distance(path, own) <= 2 for path in first) >= len(first) / 2


@pytest.mark.parametrize("trials", [1, 2, 3, 9, 25])
def test_no_more_paths_are_tried_than_allowed_and_none_twice(trials: int) -> None:
    watch, trying = Watch(), objective(nearness)
    result = flow(trying, tell=watch, options={"trials": trials})
    assert result.trials == len(trying) == len(watch.tried) == max(2, trials)


def test_paths_stay_within_their_limits() -> None:
    watch = Watch()
    options = {"trials": 200, "most_layers": 7, "repeats": 2}
    flow(objective(lambda c: len(c) / 100), tell=watch, options=options)
    lengths = set()
    for one in watch.tried:
        path = path_of(one.coefficients)
        lengths.add(len(path))
        assert max(Counter(layer for _, layer in path).values()) <= 2
        assert all(0.5 <= n <= 2 for n in one.coefficients.values())
    assert max(lengths) == 7


def test_a_search_that_has_tried_every_path_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_flow, "SCALE_STEP", 0.0)
    given = problem(
        "ab",
        objective(lambda c: 0.5),
        dials=Dials(layers=1),
        options={"trials": 10_000, "repeats": 1, "most_layers": 1, "population": 3},
    )
    result = search("data_flow", given)
    assert result.trials == 2
    assert result.coefficients == {"a": 1.0}


def test_a_failed_path_is_reported_and_passed_over() -> None:
    def breaks(coefficients: Mapping[str, float]) -> float:
        return float("nan") if len(path_of(coefficients)) != DEPTH else nearness(coefficients)

    watch = Watch()
    result = flow(objective(breaks), tell=watch, options={"trials": 80})
    assert any(one.failure for one in watch.tried)
    assert len(path_of(result.coefficients)) == DEPTH
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_models_without_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="no numbered layers"):
        search("data_flow", problem("ab", objective(nearness)))


def test_a_models_own_layers_are_that_model() -> None:
    own = tuple(Place("a", layer) for layer in range(3))
    assert spelled(own, 3) == {"a": 1.0}
    assert spelled((*own[:2], Place("b", 2, 0.9)), 3) == {
        "place 0 of a [layer 0]": 1.0,
        "place 1 of a [layer 1]": 1.0,
        "place 2 of b [layer 2]": 0.9,
    }


def test_every_sort_of_move_is_made() -> None:
    own = tuple(Place("a", layer) for layer in range(8))
    limits = Limits(("a", "b"), 8, 12, 2)
    found = [moved(own, limits, random.Random(seed)) for seed in range(300)]
    assert any(len(path) < 8 for path in found)
    assert any(len(path) > 8 for path in found)
    assert any({place.model for place in path} == {"a", "b"} for path in found)
    assert any(place.scale != 1 for path in found for place in path)


def test_scales_are_left_alone_where_they_are_off() -> None:
    watch = Watch()
    flow(objective(nearness), tell=watch, options={"trials": 60, "scales": "off"})
    assert {scale for one in watch.tried for scale in one.coefficients.values()} == {1.0}


def test_scales_are_left_alone_where_models_have_no_place_for_them() -> None:
    watch = Watch()
    given = problem("ab", objective(nearness), tell=watch, dials=Dials(layers=6, scales=False))
    search("data_flow", Problem(**{**vars(given), "options": {"trials": 60}}))
    assert {scale for one in watch.tried for scale in one.coefficients.values()} == {1.0}


def test_paths_that_may_not_be_as_long_as_a_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="most_layers is 5, and the models have 6"):
        flow(objective(nearness), options={"most_layers": 5})


def test_a_race_of_paths_takes_fewer_items_and_ends_with_one_that_was_scored_on_all() -> None:
    def share(coefficients: Mapping[str, float]) -> float:
        return 0.2 + 0.6 * nearness(coefficients)

    options = {"trials": 100, "population": 12}
    raced = flow(of_items(share), options=options)
    assert sum(each.stopped for each in raced.generations) > 0
    assert raced.items < 0.9 * raced.trials * ITEMS
    assert raced.score == answered(share)(raced.coefficients).mean


def test_stopped_at_any_trial_it_goes_on_to_the_same_end(tmp_path: Path) -> None:
    def run(journal: Path, watch: Watch) -> SearchResult:
        with Journal(journal) as opened:
            serial = Serial(lambda coefficients, block: Trial(as_scores(nearness(coefficients))))
            trying = JournalledObjective(serial, opened, scope="s", items=(1,))
            return flow(trying, seed=2, tell=watch, options={"trials": 40})

    undisturbed = Watch()
    expected = run(tmp_path / "whole", undisturbed)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for stop in range(0, len(lines), 5):
        watch = Watch()
        (tmp_path / "stopped").write_bytes(b"".join(lines[:stop]))
        assert run(tmp_path / "stopped", watch) == expected
        assert watch.calls == undisturbed.calls
        assert (tmp_path / "stopped").read_bytes() == (tmp_path / "whole").read_bytes()
