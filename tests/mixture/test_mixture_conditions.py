"""Experts that a router cannot tell apart: rows that say the same, or that others add up to."""

import pytest
import torch

from modelglue.mixture.conditions import as_json, confused, confusions, shown
from modelglue.mixture.router import LinearRouter, condition, widened


def rows(count, *, width=6, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("change", "groups"),
    [
        (lambda w: w, []),
        (lambda w: w[[0, 1, 0, 2]], [(0, 2)]),
        (lambda w: w[[0, 1, 0, 1, 2]], [(0, 2), (1, 3)]),
        (lambda w: w[[0, 0, 1, 0]], [(0, 1, 3)]),
        (lambda w: torch.stack([w[0], (w[0] + w[1]) / 2, w[1], w[2]]), [(0, 1, 2)]),
        (lambda w: w * 0, [(0, 1, 2, 3)]),
        (lambda w: w[:, :1], [(0, 1, 2, 3)]),
        (lambda w: w[:1], []),
    ],
)
def test_who_is_confused_is_who_depends_on_others(change, groups):
    weight = change(rows(4))
    assert confused(weight) == groups
    assert (condition(weight) == float("inf")) == bool(groups)
    # What is the same for all rows says nothing, nor does their order of size.
    assert confused(weight * 3 + torch.ones(weight.shape[1])) == groups


def test_the_experts_are_named_and_the_routers_counted():
    good, bad = (LinearRouter(weight, torch.zeros(3)) for weight in (rows(3), rows(3)[[0, 1, 0]]))
    names = ["maths", "code", "prose"]
    assert confusions([good, good], names) == []
    assert confusions([bad], names) == [
        "the router cannot tell maths, prose apart (condition ∞): give them prompts that differ "
        "more, or leave one of them out"
    ]
    (said,) = confusions([widened(bad), good, bad], names)
    assert said.startswith("2 of 3 routers cannot tell maths, prose apart")


def test_conditions_are_shown_from_the_best_to_the_worst():
    assert shown([2.0]) == "2 (1 is best)"
    assert shown([4.25, 1.5, float("inf")]) == "1.5 to ∞ (1 is best)"
    assert as_json([1.5, float("inf")]) == [1.5, None]
