import json
import math
from dataclasses import replace

import pytest
from report_sample import make_evolved_report, make_report

from modelglue.errors import InputError
from modelglue.report.data import RunReport, SimilarityMap


def test_a_report_survives_json():
    report = make_report(8)
    assert RunReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_json_has_the_documented_keys_and_nothing_else():
    assert list(make_report(3).to_json()) == [
        "title",
        "modelglue",
        "seconds",
        "models",
        "similarity",
        "searches",
        "routing",
        "tasks",
        "table",
        "notes",
        "inputs",
        "versions",
        "command",
        "merge",
        "acceptance",
    ]


def test_absent_parts_survive_json():
    report = replace(make_report(2), routing=None, seconds=None, searches=())
    assert RunReport.from_json(report.to_json()) == report


def test_what_cannot_be_compared_is_null_in_json():
    nan = math.nan
    similarity = SimilarityMap(("a", "b"), ((1.0, nan), (nan, 1.0)), 0.95, (("a",), ("b",)))
    encoded = replace(make_report(2), similarity=similarity).to_json()
    assert encoded["similarity"]["matrix"] == [[1.0, None], [None, 1.0]]
    json.dumps(encoded, allow_nan=False)


def test_a_score_that_is_not_a_number_is_null_in_json_and_nan_again_after_it():
    report = make_report(2)
    row = replace(report.table[0], average=math.nan)
    encoded = json.loads(json.dumps(replace(report, table=(row,)).to_json(), allow_nan=False))
    assert encoded["table"][0]["average"] is None
    assert math.isnan(RunReport.from_json(encoded).table[0].average)


def test_evolutions_and_acceptance_survive_json_but_for_what_is_not_finite():
    report = make_evolved_report()
    again = RunReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False)))
    assert again.acceptance == report.acceptance
    assert again.tasks == report.tasks
    for before, after in zip(report.searches, again.searches, strict=True):
        assert replace(after, generations=()) == replace(before, generations=())
        for told, read in zip(before.generations, after.generations, strict=True):
            failed = told.failed == told.candidates
            assert math.isnan(read.best) == failed
            assert replace(read, best=0.0) == replace(told, best=0.0)


def test_a_report_from_before_there_were_evolutions_is_read():
    report = make_report(8)
    encoded = report.to_json()
    del encoded["acceptance"]
    for path in encoded["searches"]:
        del path["generations"], path["items"]
    for task in encoded["tasks"]:
        del task["validation_items"]
    assert RunReport.from_json(encoded) == report


def test_keys_of_a_later_version_are_ignored():
    report = make_report(2)
    assert RunReport.from_json({**report.to_json(), "mood": "good"}) == report


def test_a_missing_field_is_named_with_its_place():
    encoded = make_report(2).to_json()
    del encoded["table"][1]["average"]
    with pytest.raises(InputError, match=r"report\.table\[1\]: average is missing"):
        RunReport.from_json(encoded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda j: j["table"][0].update(stored="many"),
            r"report\.table\[0\]\.stored: expected int",
        ),
        (lambda j: j["models"][0].update(fate="lost"), r"models\[0\]\.fate: expected merged or "),
        (lambda j: j.update(models={}), r"report\.models: expected"),
        (lambda j: j["table"][0].update(average=True), r"average: expected float, found True"),
        (lambda j: j["models"].append(3), r"report\.models\[2\]: expected an object, found 3"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(change, message):
    encoded = make_report(2).to_json()
    change(encoded)
    with pytest.raises(InputError, match=message):
        RunReport.from_json(encoded)


@pytest.mark.parametrize("value", [None, [], "report", 3])
def test_what_is_not_a_report_at_all_is_refused(value):
    with pytest.raises(InputError, match="report: expected an object"):
        RunReport.from_json(value)
