import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import make_evolved_report, make_report

from modelglue.report import candidates, words
from modelglue.report.data import SearchPath, SearchStep
from modelglue.search.knobs import Knob


def found(coefficients: dict[str, float], *steps: str) -> SearchPath:
    turns = tuple(SearchStep(name, 0.5, 0.7, 0.6, True) for name in steps)
    return SearchPath(0, "evolution", True, 0.7, 40, coefficients, turns)


def test_plain_weights_are_one_linear_merge_the_heaviest_first():
    path = found({"a": 0.25, "b": 0.75, "c": 0.0})
    assert candidates.formula(path) == "0.750 b + 0.250 a"
    assert candidates.summary(path) == "70.0 · best of 40 trials · 2 models kept"


def test_the_score_of_a_search_says_that_it_is_the_best_of_many():
    path = replace(found({"a": 1.0}), low=0.66, high=0.74, items=4000)
    assert candidates.summary(path) == (
        "70.0 (95 % interval 66.0 to 74.0, not corrected) · best of 40 trials · "
        "4,000 item evaluations · 1 model kept"
    )
    for low, high in ((None, 0.74), (0.66, math.nan)):
        shown = candidates.summary(replace(path, low=low, high=high, trials=1))
        assert shown.startswith("70.0 · 1 trial · ")


def test_between_two_models_the_second_has_the_share_t():
    path = found({"maths": 0.5, "code": 0.5, "t of *": 0.9})
    assert candidates.formula(path) == "0.900 code + 0.100 maths"
    assert candidates.read(path).parameters == {"t": 0.9}
    assert candidates.kept(found({"maths": 0.5, "code": 0.5, "t of *": 0.0})) == ["maths"]
    apart = found({"a": 0.5, "b": 0.5, "t of * [layers 0-1]": 0.25, "t of * [rest]": 0.0})
    assert candidates.formula(apart) == "(0.750 to 1.000) a + (0.000 to 0.250) b"


def test_weights_that_differ_between_layers_are_told_by_their_range():
    path = found({"a [layers 0-1]": 0.2, "a [rest]": 0.4, "b [layers 0-1]": 0.8, "b [rest]": 0.8})
    assert candidates.formula(path) == "0.800 b + (0.200 to 0.400) a"
    assert candidates.kept(path) == ["b", "a"]


def test_groups_stand_in_the_order_of_the_layers_and_the_rest_comes_last():
    labels = ["layers 0-1 attention", "layers 0-1 mlp", "layers 2-3", "layers 10-11", "rest"]
    grid = candidates.read(found({f"a [{label}]": 0.5 for label in sorted(labels)})).grid
    assert list(grid.groups) == labels


def test_a_cell_is_empty_where_the_candidate_has_no_such_number():
    grid = candidates.read(found({"a [layers 0-1]": 0.5, "density of b [rest]": 0.4})).grid
    assert grid.columns == (Knob("a"), Knob("b", parameter="density"))
    assert grid.cells == ((0.5, None), (None, 0.4))


def test_layers_that_follow_one_another_are_said_as_a_range():
    way = {f"place {i} of base [layer {i}]": 1.0 for i in range(4)}
    way |= {f"place {i + 4} of maths [layer {i + 2}]": 0.9 for i in range(4)}
    path = found(dict(sorted(way.items(), key=lambda item: item[0][::-1])))
    assert candidates.formula(path) == "layers: base 0–3, maths 2–5"
    assert [candidates.scales(run) for run in candidates.read(path).runs] == ["1.000", "0.900"]


def test_scales_that_differ_are_all_told():
    (run,) = candidates.read(found({f"place {i} of a [layer {i}]": 1 - i / 8 for i in (0, 1)})).runs
    assert candidates.scales(run) == "1.000, 0.875"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5)), max_size=20))
def test_the_runs_are_the_way_itself_and_as_few_as_can_be(way):
    names = {f"place {i} of {model} [layer {k}]": i / 8 for i, (model, k) in enumerate(way)}
    runs = candidates.read(found(names)).runs
    told = [
        (run.place + i, run.model, run.layer + i, scale)
        for run in runs
        for i, scale in enumerate(run.scales)
    ]
    assert told == [(i, model, layer, i / 8) for i, (model, layer) in enumerate(way)]
    for one, other in pairwise(runs):
        assert (one.model, one.layer + len(one.scales)) != (other.model, other.layer)


def test_a_parameter_of_the_whole_merge_has_its_bare_name():
    path = found({"a": 1.0, "density of a": 0.5, "lambda of *": 0.8})
    assert candidates.read(path).parameters == {"density of a": 0.5, "lambda": 0.8}
    assert candidates.formula(path) == "1.000 a"


def test_where_there_are_neither_weights_nor_layers_the_parameters_are_the_formula():
    path = found({"t of * [layers 0-1]": 0.1, "t of * [rest]": 0.6})
    assert candidates.formula(path) == "t (0.100 to 0.600)"
    assert candidates.summary(path) == "70.0 · best of 40 trials"
    assert candidates.formula(found({"t of *": 0.3})) == "t 0.300"


@pytest.mark.parametrize("name", ["lord of rings", "a [b]", "place 1 of a [layer 2]"])
def test_a_model_that_had_its_turn_is_a_model_whatever_its_name_looks_like(name):
    path = found({name: 0.5, "b": 0.5}, name, "b")
    assert candidates.read(path).weights == {name: 0.5, "b": 0.5}


@pytest.mark.parametrize("name", ["", "a\nb", "\n"])
def test_a_name_that_is_no_knob_is_taken_for_a_model(name):
    assert candidates.read(found({name: 0.5})).weights == {name: 0.5}


model = st.sampled_from(["a", "b|c", "*", "<i>", "模型"])
group = st.sampled_from(["", "layers 0-1", "layer 3", "rest"])
parameter = st.sampled_from(["weight", "density", "place 2", "place 10", "t"])
knobs = st.builds(Knob, model, group, parameter).map(str)


@given(st.dictionaries(knobs, st.floats(allow_nan=True, allow_infinity=True), max_size=12))
def test_every_number_of_a_candidate_has_one_place(coefficients):
    path = found(coefficients)
    candidate = candidates.read(path)
    cells = [cell for row in candidate.grid.cells for cell in row if cell is not None]
    scales = [scale for run in candidate.runs for scale in run.scales]
    told = [*candidate.weights.values(), *cells, *scales, *candidate.parameters.values()]
    assert sorted(map(repr, told)) == sorted(map(repr, coefficients.values()))
    assert "nan" not in candidates.formula(path)


def test_a_number_that_is_none_is_not_printed_as_one():
    assert candidates.formula(found({"a": math.nan})) == f"{words.NONE} a"
    assert words.weight(-math.inf) == words.NONE


def test_a_model_is_told_by_its_weight_its_range_or_its_layers():
    report = make_report(8)
    path = words.winning_search(report, 0)
    assert path is not None
    name, weight = next(iter(path.coefficients.items()))
    one = next(model for model in report.models if model.name == name)
    assert candidates.share(report, one) == candidates.Share(words.weight(weight), weight)

    def told(coefficients: dict[str, float]) -> candidates.Share:
        changed = replace(path, coefficients=coefficients, steps=())
        return candidates.share(replace(report, searches=(changed,)), one)

    between = told({"z": 0.5, name: 0.5, "t of *": 0.75})
    assert between == candidates.Share("0.750", 0.75)
    grouped = told({f"{name} [rest]": 0.25, f"{name} [layers 0-1]": 0.75})
    assert grouped == candidates.Share("(0.250 to 0.750)", 0.5)
    layers = {f"place {i} of {name} [layer {i}]": 1.0 for i in range(3)}
    assert told({**layers, "place 3 of z [layer 3]": 1.0}).text == "3 of 4 layers"
    assert told({"z": 1.0}) == candidates.Share(words.NONE, None)


def test_a_merge_that_was_not_accepted_gives_no_model_a_weight():
    for accepted in (True, False):
        report = make_evolved_report(accepted=accepted)
        shares = {
            model.name: candidates.share(report, model).text
            for model in report.models
            if model.family == 0
        }
        assert (set(shares.values()) == {words.NONE}) != accepted
