"""The `search` section: short and long forms, defaults, and every problem at once."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.recipe.estimate import trials_at_most
from modelglue.recipe.search_config import (
    DEFAULT,
    SearchConfig,
    StrategyConfig,
    device_problems,
    parse_search,
    with_executor,
)
from modelglue.search.problem import STRATEGIES, Problem, options_of, search
from modelglue.search.result import SearchResult
from modelglue.search.trials import in_memory


def parsed(value: object) -> SearchConfig:
    problems: list[str] = []
    config = parse_search(value, problems)
    assert problems == []
    return config


def problems_of(value: object) -> list[str]:
    problems: list[str] = []
    parse_search(value, problems)
    return problems


def test_nothing_said_is_the_papers_heuristics() -> None:
    assert parsed(None).names == parsed({}).names == DEFAULT


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_can_be_named_with_its_defaults(strategy: str) -> None:
    config = parsed({"strategy": strategy})
    defaults = {name: option.default for name, option in options_of(strategy).items()}
    assert config.strategies == (StrategyConfig(strategy, strategy, defaults),)


def test_options_stand_beside_a_single_strategy_and_settings_beside_them() -> None:
    config = parsed({"strategy": "evolution", "trials": 12, "level": 0.01, "workers": 2})
    assert config.strategies[0].options["trials"] == 12
    assert (config.level, config.workers, config.executor) == (0.01, 2, "workers")


def test_one_strategy_may_run_twice_under_two_names() -> None:
    config = parsed({"strategies": ["evolution", {"strategy": "evolution", "name": "again"}]})
    assert config.names == ("evolution", "again")


def test_what_was_said_reads_back_as_it_was() -> None:
    config = parsed(
        {"strategies": ["greedy_soup", {"strategy": "evolution", "trials": 7}], "validation": 0.2}
    )
    assert parsed(config.to_mapping()) == config


def test_all_problems_are_told_at_once() -> None:
    found = problems_of(
        {
            "strategies": ["evolutoin", {"strategy": "evolution", "trails": 5, "trials": 0}, 3],
            "validatoin": 0.5,
            "level": 2,
            "executor": "slurm",
        }
    )
    text = "\n".join(found)
    assert len(found) == 7
    assert "search.strategies[0]: there is no 'evolutoin'; did you mean \"evolution\"?" in text
    assert (
        'search.strategies[1].trails: evolution has no such option; did you mean "trials"?' in text
    )
    assert "search.strategies[1].trials: must be a whole number" in text
    assert "search.strategies[2]: must be the name" in text
    assert 'search.validatoin: unknown key; did you mean "validation"?' in text
    assert "search.level: must be a number of at least 0.0001 and below 0.5, not 2" in text
    assert "search.executor: must be one of serial, workers, ray, not 'slurm'" in text


def test_strategy_and_strategies_together_are_refused() -> None:
    assert problems_of({"strategy": "evolution", "strategies": ["evolution"]}) == [
        "search: strategy and strategies are both given; keep one"
    ]


def test_two_results_of_one_name_are_refused() -> None:
    assert "give them a name each" in problems_of({"strategies": ["greedy_soup", "greedy_soup"]})[0]


def test_on_and_off_are_words_however_yaml_reads_them() -> None:
    (one,) = parsed({"strategy": "evolution", "racing": False}).strategies
    assert one.options["racing"] == "off"


def test_a_warm_start_is_a_strategy_or_the_name_of_an_earlier_one() -> None:
    soup = {"strategy": "greedy_soup", "name": "soup"}
    start = {"strategy": "evolution", "warm_start": "soup"}
    assert parsed({"strategies": [soup, start]}).strategies[1].options["warm_start"] == "soup"
    (problem,) = problems_of({"strategies": [start, soup]})
    assert "search.strategies[0].warm_start: must be a strategy, or the name of one" in problem
    (problem,) = problems_of({"strategy": "evolution", "warm_start": "data_flow"})
    assert "search.warm_start: data_flow finds an order of layers" in problem


def test_no_evolution_starts_from_itself() -> None:
    (problem,) = problems_of({"strategy": "evolution", "trials": 20, "warm_start": "evolution"})
    assert problem.startswith("search.warm_start: evolution would start from itself")
    again = {"strategy": "evolution", "name": "again", "warm_start": "evolution"}
    parsed({"strategies": ["evolution", again]})


NAMES = "abcdefgh"


@pytest.mark.parametrize("trials", [1, 12, 60])
@pytest.mark.parametrize("models", [1, 2, 5, 8])
@pytest.mark.parametrize(
    "strategies",
    [
        [{}],
        [{"warm_start": "heuristic_average"}],
        [{"warm_start": "heuristic_coefficient"}],
        ["heuristic_coefficient", {"warm_start": "heuristic_coefficient"}],
        ["greedy_soup", {"warm_start": "heuristic_coefficient"}, {"name": "again"}],
    ],
    ids=["cold", "average", "coefficient", "one before", "three"],
)
def test_no_search_tries_more_than_was_told(
    strategies: list[Any], models: int, trials: int
) -> None:
    """Of an objective that any model helps, so that no turn is spared."""
    section = [
        one if isinstance(one, str) else {"strategy": "evolution", "trials": trials, **one}
        for one in strategies
    ]
    config = parsed({"strategies": section})
    goal = {name: (1 + place) / 36 for place, name in enumerate(NAMES)}

    def score(candidate: Mapping[str, float]) -> Scores:
        loss = sum((candidate.get(name, 0.0) - share) ** 2 for name, share in goal.items())
        return Scores((TaskScores("task", ("item",), (-loss,)),))

    asked = in_memory(score)
    results: dict[str, SearchResult] = {}
    for one in config.strategies:
        problem = Problem(tuple(NAMES[:models]), asked, lambda candidate, name: 0.0)
        result = search(one.strategy, replace(problem, options=one.options, results=results))
        results[one.name] = result
    assert len(asked) <= trials_at_most(models, config.strategies)
    if len(strategies) == 1:
        assert result.trials == len(asked)


def test_a_warm_start_beyond_the_trials_is_made_to_its_end() -> None:
    config = parsed({"strategy": "evolution", "trials": 10, "warm_start": "heuristic_coefficient"})
    assert trials_at_most(5, config.strategies) == 5 + 9 * 4
    config = parsed({"strategy": "evolution", "trials": 100, "warm_start": "heuristic_coefficient"})
    assert trials_at_most(5, config.strategies) == 5 + 100  # those of the start are among them


def test_what_is_left_empty_keeps_its_default() -> None:
    config = parsed({"strategy": "evolution", "trials": None, "warm_start": None, "level": None})
    assert config == parsed({"strategy": "evolution"})
    assert trials_at_most(3, config.strategies) == 203
    (problem,) = problems_of({"strategy": "evolution", "trails": None})
    assert problem.startswith("search.trails: evolution has no such option")


@pytest.mark.parametrize("level", [0.0, 0.5, float("nan")])
def test_a_level_that_no_test_can_have_is_refused(level: float) -> None:
    (problem,) = problems_of({"level": level})
    assert problem.startswith("search.level: must be a number of at least 0.0001 and below 0.5")


@pytest.mark.parametrize("storage", ["optuna.db", "runs/optuna.journal", 3, ""])
def test_a_storage_is_the_url_of_a_database(storage: object) -> None:
    (problem,) = problems_of({"storage": storage})
    assert problem.startswith("search.storage: must be the URL of a database, such as sqlite:///")
    parsed({"storage": "postgresql://host/studies"})


@pytest.mark.parametrize(
    ("settings", "users"),
    [
        ({"executor": "serial", "workers": 4}, "workers or ray"),
        ({"address": "host:6379"}, "ray"),
        ({"workers": 2, "address": "auto"}, "ray"),
        ({"executor": "workers", "gpus_per_worker": 1}, "ray"),
    ],
)
def test_what_the_executor_would_pass_over_is_one_problem(
    settings: dict[str, object], users: str
) -> None:
    (problem,) = problems_of(settings)
    assert f"has no use for it; set executor: {users}, or leave" in problem


@pytest.mark.parametrize("gpus", [1.5, float("inf")])
def test_more_than_one_gpu_is_a_whole_number_of_them(gpus: float) -> None:
    (problem,) = problems_of({"executor": "ray", "gpus_per_worker": gpus})
    assert "search.gpus_per_worker: must be a share of one GPU or a whole number of" in problem
    (problem,) = problems_of({"executor": "ray", "gpus_per_worker": -1})
    assert "search.gpus_per_worker: must be a number of at least 0, not -1" in problem


def test_a_model_is_spread_over_the_gpus_of_its_worker() -> None:
    shares = (0, 0.5, 1, 2, 4.0)
    configs = [parsed({"executor": "ray", "gpus_per_worker": share}) for share in shares]
    assert [config.gpus_per_model for config in configs] == [1, 1, 1, 2, 4]


@pytest.mark.parametrize(
    ("settings", "device", "problem"),
    [
        ({"executor": "ray"}, "cuda:1", "'cuda:1' is none that Ray's workers see"),
        ({"executor": "ray", "gpus_per_worker": 0.5}, "cpu", "so GPUs would idle"),
        ({"executor": "ray", "gpus_per_worker": 0.5}, "cuda", None),
        ({"executor": "ray"}, "cuda:0", None),
        ({"executor": "ray", "gpus_per_worker": 2}, "cpu", "so GPUs would idle"),
        ({"executor": "ray", "gpus_per_worker": 2}, "cuda:0", "spread over 2 GPUs, and device: "),
        ({"executor": "ray", "gpus_per_worker": 2}, "cuda", None),
        ({"workers": 2}, "cuda:1", None),
    ],
)
def test_rays_workers_see_no_second_gpu(
    settings: dict[str, object], device: str, problem: str | None
) -> None:
    found = device_problems(parsed(settings), device)
    assert len(found) == (problem is not None)
    assert all(str(problem) in each for each in found)


@pytest.mark.parametrize(
    ("section", "executor", "workers", "expected"),
    [
        (None, None, 3, ("workers", 3)),
        ({"executor": "serial"}, None, 3, ("workers", 3)),
        ({"executor": "ray", "address": "auto"}, None, 3, ("ray", 3)),
        ({"workers": 4}, "ray", None, ("ray", 4)),
        ({"workers": 4}, "serial", None, ("serial", 1)),
        ({"executor": "ray", "address": "auto", "workers": 4}, "workers", None, ("workers", 4)),
        ({"executor": "ray", "gpus_per_worker": 1, "workers": 4}, "serial", None, ("serial", 1)),
    ],
)
def test_another_executor_takes_the_place_of_the_recipes(
    section: object, executor: str | None, workers: int | None, expected: tuple[str, int]
) -> None:
    config = parsed(with_executor(section, executor=executor, workers=workers))
    assert (config.executor, config.workers) == expected


def test_an_executor_that_nobody_knows_is_told_as_it_was_given() -> None:
    (problem,) = problems_of(with_executor({"workers": 4}, executor="slurm", workers=None))
    assert "search.executor: must be one of serial, workers, ray, not 'slurm'" in problem
