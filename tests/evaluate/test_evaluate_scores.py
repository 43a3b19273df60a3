import json
import math

import pytest

from modelglue.errors import EvaluationError
from modelglue.evaluate.scores import Scores, TaskScores


def test_scores_survive_json_unchanged() -> None:
    scores = Scores(
        (
            TaskScores("a", ("1", "2"), (0.1, 1.0), ("g", "g"), {"acc": (0.0, 1.0)}),
            TaskScores("b", ("x",), (0.25,)),
        )
    )
    assert Scores.from_json(json.loads(json.dumps(scores.to_json()))) == scores


def test_every_task_counts_the_same_in_the_mean() -> None:
    many = TaskScores("many", tuple("abcdefgh"), (0.0,) * 8)
    one = TaskScores("one", ("a",), (1.0,))
    assert Scores((many, one)).mean == 0.5


def test_groups_default_to_the_items_themselves() -> None:
    assert TaskScores("t", ("1", "2"), (0.0, 1.0)).groups == ("1", "2")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_refused_with_its_item(value: float) -> None:
    with pytest.raises(EvaluationError, match="task t, item 2: values is"):
        TaskScores("t", ("1", "2"), (0.0, value))


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 values for 2 items"):
        TaskScores("t", ("1", "2"), (0.0,))


def test_no_items_are_no_score() -> None:
    with pytest.raises(EvaluationError, match="no items"):
        TaskScores("t", (), ())
