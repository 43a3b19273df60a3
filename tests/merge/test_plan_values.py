"""A plan with other numbers is the plan that is made anew with them."""

from pathlib import Path
from typing import Any

import hollow
import pytest

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import InputError, NotMergeable, UnusableValues
from modelglue.merge.config.schema import MergeConfig, parse_config
from modelglue.merge.plan.merge_plan import MergePlan, plan_of, with_values


def asked(method: str, zoo: list[Path], *, weights: Any = (1, 1), **parameters: Any) -> MergeConfig:
    weighted = [
        {"model": str(path), "parameters": {"weight": weight}}
        for path, weight in zip(zoo, weights, strict=False)
    ]
    plain = [{"model": str(path)} for path in zoo[: 1 if method == "slerp" else 2]]
    return parse_config(
        {
            "merge_method": method,
            "models": plain if method in ("slerp", "model_stock") else weighted,
            "base_model": str(zoo[3]),
            "parameters": parameters,
        }
    )


@pytest.fixture(scope="module")
def opened(zoo: list[Path]) -> dict[str, Checkpoint]:
    return {str(path): Checkpoint.open(path) for path in zoo}


def parts_of(plan: MergePlan) -> tuple[Any, ...]:
    return (
        plan.models,
        plan.base,
        plan.tensors,
        plan.config,
        plan.output_config,
        plan.notes,
    )


FILTERED = ([{"filter": "layers.1.", "value": 0.2}, {"value": 0.7}], [{"value": [0.1, 0.9]}])


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("linear", {"weights": (0.3, 0.6)}),
        ("linear", {"weights": FILTERED, "normalize": False}),
        ("task_arithmetic", {"weights": FILTERED, "lambda": 0.4}),
        ("ties", {"weights": FILTERED, "density": [{"filter": "mlp", "value": 0.2}]}),
        ("ties", {"weights": FILTERED, "density": 0.3, "trim": "global"}),
        ("dare_ties", {"weights": (0.1, -0.4), "density": [0.1, 0.5, 0.9], "seed": 7}),
        ("slerp", {"t": [0.1, 0.8]}),
        ("slerp", {"t": FILTERED[0]}),
        ("model_stock", {}),
    ],
)
def test_other_numbers_give_the_plan_that_is_made_anew(
    method: str, values: dict[str, Any], zoo: list[Path], opened: dict[str, Checkpoint]
) -> None:
    config = asked(method, zoo, **values)
    start = plan_of(asked(method, zoo), opened)
    anew = plan_of(config, opened)
    changed = with_values(start, config)
    # A note on a default is of the filters, which searched numbers do not leave open.
    assert parts_of(changed)[:-1] == parts_of(anew)[:-1]
    if method != "ties":
        assert changed.notes == anew.notes


def test_what_cannot_be_merged_with_is_told_as_it_is_of_a_plan_made_anew(
    zoo: list[Path], opened: dict[str, Checkpoint]
) -> None:
    start = plan_of(asked("linear", zoo), opened)
    cancel = [{"filter": "layers.2.", "value": -0.5}, {"value": 0.5}]
    wrong = asked("linear", zoo, weights=(0.5, cancel))
    with pytest.raises(UnusableValues, match=r"layers\.2\..*sum to 0") as anew:
        plan_of(wrong, opened)
    with pytest.raises(UnusableValues) as changed:
        with_values(start, wrong)
    assert str(changed.value) == str(anew.value)


def test_what_is_measured_over_the_whole_model_cannot_vary(
    zoo: list[Path], opened: dict[str, Checkpoint]
) -> None:
    start = plan_of(asked("ties", zoo, trim="global"), opened)
    varying = asked("ties", zoo, trim="global", density=[0.1, 0.9])
    with pytest.raises(NotMergeable, match="density cannot vary"):
        with_values(start, varying)


def test_a_weight_that_some_tensors_lack_is_refused(
    zoo: list[Path], opened: dict[str, Checkpoint]
) -> None:
    start = plan_of(asked("linear", zoo), opened)
    partial = asked("linear", zoo, weights=([{"filter": "mlp", "value": 0.5}], 1))
    with pytest.raises(InputError, match="no filter of weight"):
        with_values(start, partial)


def test_a_union_of_vocabularies_stays(tmp_path: Path) -> None:
    shapes = hollow.llama(2)
    models = [hollow.save(tmp_path / name, shapes, num_hidden_layers=2) for name in "ab"]
    opened = {str(path): Checkpoint.open(path) for path in models}
    value = {"merge_method": "linear", "models": [str(path) for path in models]}
    start = plan_of(parse_config(value), opened)
    changed = with_values(start, parse_config({**value, "parameters": {"weight": 0.3}}))
    assert changed.tokenizer is start.tokenizer
    assert [t.union for t in changed.tensors] == [t.union for t in start.tensors]
