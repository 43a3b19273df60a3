from dataclasses import replace

import pytest
from report_sample import make_report

from modelglue.report import families, words
from modelglue.report.data import Difference, SimilarityMap
from modelglue.report.headline import Headline, headline


def verdict(mean: float, low: float, high: float) -> Headline:
    return headline(make_report(4, gain=(mean, low, high)))


def test_an_interval_above_zero_is_a_gain():
    said = verdict(0.042, 0.029, 0.055)
    assert said.short == "Gluing helped"
    assert said.sentence == (
        "The glued model scores 78.2 on average, 4.2 points above the best single model "
        "(maths-a, 74.0); 95 % interval +2.9 to +5.5 points."
    )


@pytest.mark.parametrize(
    ("mean", "words_for_it"), [(0.01, "1.0 points above"), (-0.004, "0.4 points below")]
)
def test_an_interval_with_zero_in_it_shows_no_gain(mean, words_for_it):
    said = verdict(mean, -0.02, 0.03)
    assert said.short == "No gain shown"
    assert words_for_it in said.sentence
    assert said.sentence.endswith("the 95 % interval −2.0 to +3.0 points includes 0.")


def test_an_interval_that_touches_zero_shows_no_gain():
    assert verdict(0.01, 0.0, 0.02).verdict == "unclear"


def test_an_interval_below_zero_is_a_loss():
    said = verdict(-0.03, -0.05, -0.01)
    assert said.short == "No gain: gluing did harm"
    assert "3.0 points below the best single model" in said.sentence


def test_without_a_glued_model_there_is_no_verdict():
    report = make_report(4)
    rows = tuple(row for row in report.table if row.kind != "glued")
    assert headline(replace(report, table=rows)).verdict == "unknown"


def test_the_reference_is_the_single_model_without_a_difference():
    report = make_report(4)
    better = replace(report.table[-1], average=0.99)
    best = words.best_single(replace(report, table=(*report.table, better)))
    assert best is not None
    assert best.name == "maths-a"


def test_every_row_of_the_table_is_shown_once():
    report = make_report(9)
    shown = words.contestants(report) + words.other_singles(report)
    assert sorted(row.name for row in shown) == sorted(row.name for row in report.table)


def test_other_single_models_come_best_first():
    averages = [row.average for row in words.other_singles(make_report(9))]
    assert averages == sorted(averages, reverse=True)


def test_the_oracle_does_not_count_among_the_best():
    report = make_report(4)
    assert words.best_scores(report)[""] == max(
        row.average for row in report.table if row.kind != "oracle"
    )


def test_the_order_of_the_map_keeps_families_together():
    members = (("d", "a"), ("c",))
    similarity = SimilarityMap(tuple("abcd"), ((1.0,) * 4,) * 4, 0.95, members)
    order = families.similarity_order(similarity)
    assert [similarity.names[i] for i in order] == ["d", "a", "c", "b"]


def test_a_family_is_told_by_its_loosest_pair_and_its_nearest_stranger():
    matrix = ((1.0, 0.97, 0.99, 0.9), (0.97, 1.0, 0.96, 0.94), (0.99, 0.96, 1.0, None))
    matrix = (*matrix, (0.9, 0.94, None, 1.0))
    similarity = SimilarityMap(tuple("abcd"), matrix, 0.95, (("a", "b", "c"), ("d",)))
    first, second = families.family_summaries(similarity)
    assert (first.lowest_inside, first.highest_outside) == (0.96, 0.94)
    assert (second.lowest_inside, second.highest_outside) == (None, 0.94)


def test_a_model_is_told_by_its_nearest_inside_and_outside():
    matrix = ((1.0, 0.97, 0.9), (0.97, 1.0, 0.94), (0.9, 0.94, 1.0))
    similarity = SimilarityMap(tuple("abc"), matrix, 0.95, (("a", "b"), ("c",)))
    near = families.neighbours(similarity)
    assert near[0] == families.Neighbours("a", 0, ("b", 0.97), ("c", 0.9))
    assert near[2] == families.Neighbours("c", 1, None, ("b", 0.94))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (951_000, "951 k"), (1_100_000, "1.1 M"), (7_240_000_000, "7.24 B")],
)
def test_parameters_read_as_people_write_them(count, text):
    assert words.parameters(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.042, "+4.2"),
        (-0.042, "−4.2"),
        (0.0, "0.0"),
        (-1e-9, "0.0"),
        (0.0003, "+0.03"),
        (float("nan"), "–"),
    ],
)
def test_points_carry_their_sign(value, text):
    assert words.points(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.04, "3.0 s"), (163.4, "2 min 43 s"), (7500, "2 h 05 min")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert words.duration(seconds) == text


def test_a_coefficient_that_rounds_to_nothing_is_not_printed_as_nothing():
    assert words.weight(0.0001) == "< 0.001"


def test_a_row_says_its_difference_with_its_interval():
    row = replace(make_report(3).table[0], difference=Difference(0.01, -0.002, 0.02))
    assert words.difference(row) == "+1.0 (−0.2 to +2.0)"
