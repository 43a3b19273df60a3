"""What searches propose in a family, and what accepts or refuses it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from modelglue.errors import ConfigError, EvaluationError
from modelglue.recipe import session as sessions
from modelglue.recipe.glue import glue
from modelglue.recipe.search import search_families
from modelglue.recipe.workers import ACCEPT
from modelglue.search.problem import Trial
from stories import MODELS, make_stories, story_recipe

EVOLUTION = {"strategy": "evolution", "trials": 20}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stories(tmp_path_factory.mktemp("zoo"))


def test_a_merge_that_is_not_shown_to_be_better_is_refused(zoo: Path, tmp_path: Path) -> None:
    config = story_recipe(
        zoo, tmp_path / "run", {"strategy": "evolution", "trials": 20, "level": 1e-3}
    )
    found = search_families(config)
    (choice,), (test,) = found.choices, found.acceptance
    best = max(choice.singles, key=lambda name: choice.singles[name].mean)
    assert not test.accepted
    assert "No merge helps here" in test.text
    assert choice.single is not None
    assert test.comparisons[0].rival == choice.single
    assert choice.found == "evolution"
    assert choice.winner is None
    report = glue(config).report
    assert [m.name for m in report.models if m.fate == "expert"] == [choice.single]
    assert best in choice.members


def test_the_items_that_accept_are_seen_by_no_strategy(zoo: Path, tmp_path: Path) -> None:
    search_families(story_recipe(zoo, tmp_path / "run", {"strategies": ["heuristic_average"]}))
    items: dict[str, set[str]] = {"search-1": set(), "search-1 accept": set()}
    for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["event"] == "trial":
            items[record["scope"]] |= set(record["scores"]["tasks"][0]["items"])
    propose, accept = items.values()
    assert len(propose) == len(accept) == 12
    assert not propose & accept


def test_a_model_that_gives_nan_is_left_out_with_the_reason(zoo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    tiny.save_variant(zoo / "models/base", broken, seed=3)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-4] + b"\x00\x00\xc0\x7f")
    models = [*(f"models/{name}" for name in MODELS), str(broken)]
    search = {"strategies": ["heuristic_average"], "validation": 0}
    config = story_recipe(zoo, tmp_path / "run", search, models=models, threshold=-1)
    report = glue(config).report
    (fate,) = [model for model in report.models if model.name == "broken"]
    assert fate.fate == "dropped"
    assert "cannot be scored" in fate.reason


def test_where_no_model_can_be_scored_the_error_says_why(zoo: Path, tmp_path: Path) -> None:
    names = []
    for seed in (1, 2):
        path = tmp_path / f"broken-{seed}"
        tiny.save_variant(zoo / "models/base", path, seed=seed)
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[:-4] + b"\x00\x00\xc0\x7f")
        names.append(str(path))
    search = {"strategies": ["heuristic_average"], "validation": 0}
    config = story_recipe(zoo, tmp_path / "run", search, models=names, threshold=-1)
    with pytest.raises(EvaluationError, match="no model of the family can be scored"):
        search_families(config)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], bool]], None]:
    """Has candidates fail on the items that accept, and nowhere else."""

    def fail(which: Callable[[Any], bool]) -> None:
        make = sessions.scorer

        def scorer(*args: Any) -> Callable[[Any, int | None], Trial]:
            evaluate = make(*args)

            def evaluated(coefficients: Any, block: int | None) -> Trial:
                if block == ACCEPT and which(coefficients):
                    return Trial(None, "its logits are NaN")
                return evaluate(coefficients, block)

            return evaluated

        monkeypatch.setattr(sessions, "scorer", scorer)

    return fail


def test_a_merge_that_fails_on_the_items_that_accept_is_passed_over_and_noted(
    zoo: Path, tmp_path: Path, failing: Any
) -> None:
    failing(lambda coefficients: len(coefficients) > 1)
    outcome = glue(story_recipe(zoo, tmp_path / "run", EVOLUTION))
    (fate,) = [model for model in outcome.report.models if model.fate == "expert"]
    assert fate.name in MODELS
    assert not outcome.report.acceptance
    assert any("cannot be scored: its logits are NaN" in note for note in outcome.report.notes)


def test_a_model_that_fails_on_the_items_that_accept_is_left_out(
    zoo: Path, tmp_path: Path, failing: Any
) -> None:
    failing(lambda coefficients: coefficients == {"ft-a": 1.0})
    config = story_recipe(zoo, tmp_path / "run", {"strategies": ["heuristic_average"]})
    (choice,) = search_families(config).choices
    assert choice.failed == {"ft-a": "its logits are NaN"}
    assert set(choice.singles) == {"base", "ft-b"}


def test_a_merge_is_put_to_the_test_against_every_single_model(zoo: Path, tmp_path: Path) -> None:
    (choice,) = search_families(story_recipe(zoo, tmp_path / "run", EVOLUTION)).choices
    assert choice.verdict is not None
    ranked = sorted(choice.singles, key=lambda name: -choice.singles[name].mean)
    assert [one.rival for one in choice.verdict.comparisons] == ranked
    assert set(ranked) == set(MODELS)


def test_what_proposes_is_kept_apart_from_what_accepts(zoo: Path, tmp_path: Path) -> None:
    search = {"strategies": ["heuristic_average"]}
    (choice,) = search_families(story_recipe(zoo, tmp_path / "run", search)).choices
    (every,), (proposing,) = choice.scores.tasks, choice.proposing.tasks
    assert len(every.items) == 24
    assert set(proposing.items) < set(every.items)
    assert len(proposing.items) == 12


def test_a_test_that_nothing_could_pass_is_refused_before_models_are_scored(
    zoo: Path, tmp_path: Path
) -> None:
    search = {"strategies": ["heuristic_average"], "level": 1e-4}
    with pytest.raises(ConfigError, match="too few groups of items are set aside"):
        search_families(story_recipe(zoo, tmp_path / "run", search))
    assert not (tmp_path / "run" / "journal.jsonl").read_bytes()
