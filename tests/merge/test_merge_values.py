"""What a parameter may be set to, and which of many settings counts for a tensor."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelglue.merge.config.values import Conditional, Resolver, plain, read_setting, resolve
from modelglue.merge.method import METHODS, Parameter

NUMBER = Parameter("weight", "model", "a number", 1.0)
WHOLE = Parameter("steps", "merge", "a whole number", 10, kind="integer")
TRUTH = Parameter("normalize", "merge", "a truth", True, kind="boolean")


def read(value: object, parameter: Parameter = NUMBER) -> Any:
    problems: list[str] = []
    setting = read_setting(value, parameter, "here", problems)
    assert problems == []
    return setting


def refused(value: object, parameter: Parameter = NUMBER) -> str:
    problems: list[str] = []
    read_setting(value, parameter, "here", problems)
    assert problems
    return "; ".join(problems)


def naive_gradient(points: list[float], t: float) -> float:
    """Walk along the points until t lies between two of them."""
    if len(points) == 1:
        return points[0]
    places = [i / (len(points) - 1) for i in range(len(points))]
    for (a, va), (b, vb) in zip(zip(places, points), zip(places[1:], points[1:])):
        if a <= t <= b:
            return va + (vb - va) * (t - a) / (b - a)
    raise AssertionError(t)


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_a_gradient_is_interpolated_between_its_points(points: list[float], t: float) -> None:
    assert resolve(read(points), "any", t) == pytest.approx(naive_gradient(points, t), abs=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_a_gradient_begins_and_ends_with_its_first_and_last_point(points: list[float]) -> None:
    assert resolve(read(points), "any", 0.0) == points[0]
    assert resolve(read(points), "any", 1.0) == points[-1]


@pytest.mark.parametrize(("t", "value"), [(0, True), (0.49, True), (0.5, False), (1, True)])
def test_of_truths_the_one_at_or_before_counts(t: float, value: bool) -> None:
    assert resolve(read([True, False, True], TRUTH), "any", t) is value


def test_the_first_filter_that_is_in_the_name_counts() -> None:
    setting = read([{"filter": "mlp", "value": [0, 1]}, {"filter": "up", "value": 2}, {"value": 3}])
    assert resolve(setting, "layers.0.mlp.up_proj", 0.5) == 0.5
    assert resolve(setting, "layers.0.up", 0.5) == 2
    assert resolve(setting, "norm", 0.5) == 3


def test_where_no_filter_is_in_the_name_there_is_no_value() -> None:
    setting = read({"filter": "mlp", "value": 1})
    assert setting == (Conditional(1.0, "mlp"),)
    assert resolve(setting, "norm", 0) is None


@pytest.mark.parametrize("anything", [{"value": 2}, {"filter": "*", "value": 2}])
def test_no_filter_and_a_star_are_for_all(anything: dict[str, object]) -> None:
    assert resolve(read([anything]), "norm", 0) == 2


@pytest.mark.parametrize(("text", "number"), [("1e-3", 0.001), ("-2E1", -20.0), ("7", 7.0)])
def test_numbers_that_yaml_takes_for_texts_are_numbers(text: str, number: float) -> None:
    assert read(text) == number
    assert read([text, 1]) == (number, 1.0)
    assert read([{"value": text}]) == (Conditional(number),)


@pytest.mark.parametrize(
    ("given", "truth"), [(1, True), (0.0, False), ("yes", True), ("Off", False), (True, True)]
)
def test_truths_may_be_written_as_numbers_and_words(given: object, truth: bool) -> None:
    assert read(given, TRUTH) is truth


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert read(10.0, WHOLE) == 10
    assert isinstance(read("10.0", WHOLE), int)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], "here: the list is empty"),
        ("much", "here: 'much' is not a number"),
        ([1, "much"], r"here[1]: 'much' is not a number"),
        ([{"filter": "mlp", "vlaue": 1}], 'here[0].vlaue: unknown key; did you mean "value"?'),
        ([{"filter": "mlp"}], "here[0].value: missing"),
        ([{"value": [1, None]}], "here[0].value[1]"),
        ([{"filter": 3, "value": 1}], "here[0].filter: 3"),
        ([{"value": 1}, 2], "here[1]: every entry"),
        (float("nan"), "here: nan is not finite"),
        (True, "here: True is not a number"),
    ],
)
def test_what_is_no_setting_is_refused_with_its_place(value: object, told: str) -> None:
    assert told in refused(value)


@pytest.mark.parametrize("value", [0.5, [0.0, 1.0], [{"filter": "mlp", "value": [0.5, 1.0]}]])
def test_a_setting_can_be_written_out_again(value: object) -> None:
    assert plain(read(value)) == value


LEVELS = ["own", "slice", "module", "merge", "default"]


@pytest.mark.parametrize("present", [[level] for level in LEVELS] + [LEVELS[i:] for i in range(5)])
def test_the_nearest_level_that_says_something_counts(present: list[str]) -> None:
    values = {"own": 2.0, "slice": 3.0, "module": 4.0, "merge": 5.0, "default": 1.0}
    said = {level: {"weight": values[level]} if level in present else {} for level in LEVELS}
    resolver = Resolver(
        METHODS["linear"], [said["slice"], said["module"], said["merge"]], [said["own"], {}]
    )
    nearest = min(present, key=LEVELS.index)
    without_own = min((p for p in [*present, "default"] if p != "own"), key=LEVELS.index)
    assert resolver("a", ["a", "a"], 0)["weight"] == (values[nearest], values[without_own])


def test_a_level_whose_filters_do_not_match_is_passed_over() -> None:
    own = {"weight": read([{"filter": "mlp", "value": [0, 1]}])}
    resolver = Resolver(METHODS["linear"], [{"weight": 5.0}], [own])
    assert resolver("mlp.up", ["mlp.up"], 0.25)["weight"] == (0.25,)
    assert resolver("norm", ["norm"], 0.25)["weight"] == (5.0,)


def test_filters_see_the_name_that_a_tensor_has_in_its_model() -> None:
    setting = {"weight": read([{"filter": "layers.7.", "value": 9}, {"value": 1}])}
    resolver = Resolver(METHODS["linear"], [setting], [{}, {}])
    names = ["layers.7.mlp", "layers.2.mlp"]
    assert resolver("layers.0.mlp", names, 0)["weight"] == (9.0, 1.0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a.mlp", "a.norm", "mlp", "x"]), st.sampled_from([0.0, 0.5, 1])),
        max_size=12,
    )
)
def test_tensors_of_equal_parameters_share_them(tensors: list[tuple[str, float]]) -> None:
    own = {"weight": read([{"filter": "mlp", "value": [0, 1]}, {"filter": "a", "value": 2}])}
    resolver = Resolver(METHODS["linear"], [{"weight": 3.0}], [own])
    found = [resolver(name, [name], t) for name, t in tensors]
    for (name, t), parameters in zip(tensors, found, strict=True):
        expected = t if "mlp" in name else 2.0 if "a" in name else 3.0
        assert parameters["weight"] == (expected,)
        assert all(other is parameters for other in found if other == parameters)
