import math
from dataclasses import replace

import pytest
from report_sample import make_evolved_report, make_report

from modelglue.report import verdicts, words
from modelglue.report.data import AcceptanceTest, Difference, RunReport
from modelglue.report.headline import headline


def test_where_no_merge_was_accepted_the_top_says_so_before_the_numbers():
    report = make_evolved_report(accepted=False)
    rows = [
        replace(row, difference=Difference(0, 0, 0)) if row.kind == "glued" else row
        for row in report.table
    ]
    tested = [path for path in report.searches if path.family == 0]
    said = headline(
        replace(
            report,
            table=tuple(rows),
            routing=None,
            searches=tuple(tested),
            acceptance=report.acceptance[:1],
        )
    )
    assert said.short == "No merge helps here"
    reason = report.acceptance[0].text.removeprefix("No merge helps here: the")
    assert said.sentence.startswith(f"The{reason}")
    assert "exactly as the best single model" in said.sentence


def test_a_gain_of_the_mixture_stays_the_headline_where_no_merge_was_accepted():
    report = make_evolved_report(accepted=False)
    said, before = headline(report), headline(replace(report, acceptance=()))
    assert said.short == "Gluing helped"
    assert said.sentence == (
        f"{before.sentence} No merge helps in families 1 and 2: "
        "the best single model of each stays."
    )


def test_one_accepted_merge_leaves_the_headline_alone():
    report = make_evolved_report(accepted=True)
    assert headline(report) == headline(replace(report, acceptance=()))


def test_the_merges_accepted_are_counted_at_a_glance():
    facts = {what: figure for what, figure, _ in words.glance(make_evolved_report())}
    assert facts["Merges accepted"] == "1 of 2"
    assert "Merges accepted" not in {what for what, _, _ in words.glance(make_report(8))}


def test_a_test_for_some_tasks_names_them():
    report = make_evolved_report()
    assert verdicts.title(report.acceptance[0], report) == "Family 1"
    assert verdicts.title(report.acceptance[1], report) == "Family 2, for knowledge"


def narrowed(strategy: str, candidate: str) -> tuple[RunReport, AcceptanceTest]:
    """A search for one task only beside one for all, each with its own test."""
    report = make_evolved_report(accepted=True)
    whole = next(path for path in report.searches if path.strategy == "evolution")
    again = replace(whole, strategy=strategy)
    test = replace(report.acceptance[0], candidate=candidate, purpose=("maths",), accepted=False)
    tests = (report.acceptance[0], test)
    searches = (replace(whole, winner=False), again)
    return replace(report, searches=searches, acceptance=tests), test


@pytest.mark.parametrize("candidate", ["evolution", "evolution for maths"])
def test_a_narrowed_search_has_the_test_of_its_tasks(candidate):
    report, test = narrowed("evolution for maths", candidate)
    whole, again = report.searches
    assert verdicts.of_path(report, again) == test
    assert verdicts.of_path(report, whole) == report.acceptance[0]
    assert [verdicts.refused(report, path) for path in (whole, again)] == [False, True]


def test_a_search_that_was_not_tested_was_not_refused():
    report = make_report(8)
    assert verdicts.of_path(report, report.searches[0]) is None
    assert not verdicts.refused(report, report.searches[0])


def test_the_terms_tell_the_level_the_looks_and_the_candidates_tried():
    report = make_evolved_report()
    assert verdicts.terms(report.acceptance[0]) == (
        "Found by Evolution after 1,234 candidates; "
        "tested at level 0.05, shared by 2 tests on these items, with 95 % intervals."
    )


def test_a_test_without_a_sentence_still_says_its_verdict():
    test = replace(make_evolved_report().acceptance[0], text="")
    assert verdicts.said(test) == "The merge is accepted."
    assert verdicts.said(replace(test, accepted=False)) == verdicts.NO_MERGE


def test_a_p_that_is_not_a_number_is_not_printed_as_one():
    assert verdicts.p_value(math.nan) == words.NONE


def test_the_intervals_are_those_that_belong_to_the_test():
    test = make_evolved_report().acceptance[0]
    assert verdicts.confidence(replace(test, level=0.05, looks=1)) == "90 % interval"
    assert verdicts.confidence(replace(test, level=0.05, looks=2)) == "95 % interval"
    assert verdicts.confidence(replace(test, level=0.0001, looks=4)) == "99.995 % interval"
    assert verdicts.confidence(replace(test, level=math.nan)) == "interval"


def alone() -> RunReport:
    """A run whose merges must be accepted, and whose one search came back to a single model."""
    report = make_report(6, families=1)
    path = replace(report.searches[1], coefficients={"maths-a": 1.0})
    tasks = tuple(replace(task, validation_items=80) for task in report.tasks)
    return replace(report, searches=(path,), tasks=tasks, routing=None)


def test_a_search_that_came_back_to_a_single_model_says_that_no_merge_helps():
    report = alone()
    (one,) = verdicts.untested(report)
    assert one.title == "Family 1, Heuristic-Coefficient"
    assert "the best single model, maths-a, which stays" in one.said
    assert headline(report).short == "No merge helps here"
    assert headline(report).sentence.startswith("Nothing that was tried is better than the best")


def test_what_was_believed_without_a_test_is_not_said_to_help_nothing():
    report = alone()
    merge = replace(report.searches[0], coefficients={"maths-a": 0.5, "code-a": 0.5})
    for searches in ((merge,), (report.searches[0], replace(merge, family=1))):
        assert verdicts.no_merge(replace(report, searches=searches)) == ""


def test_where_nothing_is_set_aside_for_accepting_nothing_is_said_of_it():
    report = alone()
    tasks = tuple(replace(task, validation_items=0) for task in report.tasks)
    assert not verdicts.any_told(replace(report, tasks=tasks))
    assert verdicts.no_merge(replace(report, tasks=tasks)) == ""


@pytest.mark.parametrize(
    ("coefficients", "model"),
    [
        ({"a": 1.0, "b": 0.0}, "a"),
        ({"a": 0.7}, None),
        ({"a": 1.0, "density of a": 0.5}, None),
        ({"lambda of *": 1.0}, None),
        ({"place 0 of a [layer 0]": 1.0}, None),
        ({"a\nb": 1.0}, "a\nb"),
    ],
)
def test_a_single_model_is_one_whole_weight_and_nothing_else(coefficients, model):
    report = alone()
    path = replace(report.searches[0], coefficients=coefficients, steps=())
    found = verdicts.untested(replace(report, searches=(path,)))
    assert [one.model for one in found] == ([] if model is None else [model])
