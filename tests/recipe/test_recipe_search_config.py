"""The `search` section: short and long forms, defaults, and every problem at once."""

import pytest

from modelglue.recipe.search_config import DEFAULT, SearchConfig, StrategyConfig, parse_search
from modelglue.search.problem import STRATEGIES, options_of


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
    assert "search.level: must be a number of at least 0.0001 and at most 0.5, not 2" in text
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
