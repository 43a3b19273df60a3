"""A merge's configuration is checked completely, all problems at once."""

from pathlib import Path

import pytest

from modelglue.errors import ConfigError
from modelglue.merge.config import load_config, parse_config

GOOD = {
    "merge_method": "linear",
    "models": [{"model": "a", "parameters": {"weight": 0.3}}, {"model": "b"}],
    "parameters": {"weight": 0.7},
    "dtype": "bfloat16",
}


def problems_of(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config({**GOOD, **changes})
    return str(caught.value)


def test_a_models_own_value_goes_before_the_shared_one_and_that_before_the_default() -> None:
    assert parse_config(GOOD).values() == {"weight": (0.3, 0.7), "normalize": True}


def test_it_can_be_written_out_and_read_again() -> None:
    config = parse_config(GOOD)
    assert parse_config(config.to_mapping()) == config


def test_all_problems_are_told_at_once_with_the_nearest_spelling() -> None:
    told = problems_of(
        merge_methd="linear",
        models=[{"model": "a", "parameters": {"wieght": 1}}, {"modle": "b"}],
        dtype="bf16",
    )
    for part in ("4 problems", 'mean "merge_method"', 'mean "weight"', "models[1]", "dtype"):
        assert part in told


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "much", True, None, [1]])
def test_a_weight_that_is_no_finite_number_is_refused(weight: object) -> None:
    assert "weight" in problems_of(models=[{"model": "a", "parameters": {"weight": weight}}])


def test_weights_that_sum_to_nothing_are_refused_only_under_normalize() -> None:
    models = [
        {"model": name, "parameters": {"weight": weight}} for name, weight in [("a", 1), ("b", -1)]
    ]
    assert "sum to 0" in problems_of(models=models, parameters={})
    parse_config({**GOOD, "models": models, "parameters": {"normalize": False}})


def test_an_unknown_method_is_refused_with_those_that_are_known() -> None:
    assert 'mean "linear"' in problems_of(merge_method="liner")


@pytest.mark.parametrize("text", ["[1, 2", "just text", "", "a: b: c"])
def test_a_file_that_holds_no_configuration_is_refused_with_its_name(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "merge.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"merge\.yml"):
        load_config(path)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yml: cannot be read"):
        load_config(tmp_path / "gone.yml")
