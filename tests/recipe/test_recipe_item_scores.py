"""A table of scores has a row for each item, whatever the order in which experts saw the items."""

from dataclasses import dataclass
from typing import Any

import pytest

from modelglue.errors import EvaluationError
from modelglue.evaluate.kinds import Item
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.recipe.item_scores import score_table


@dataclass(frozen=True)
class Asked:
    """What a table needs of a task."""

    name: str
    prompts: tuple[str, ...]

    def items(self, split: str) -> tuple[Item, ...]:
        assert split == "search"
        return tuple(Item(f"{p}-id", p, {"prompt": p}) for p in self.prompts)


def scored(**tasks: dict[str, float]) -> Scores:
    return Scores(
        tuple(
            TaskScores(name, tuple(f"{p}-id" for p in own), tuple(own.values()))
            for name, own in tasks.items()
        )
    )


TASKS: Any = [Asked("maths", ("2 + 2", "3 + 4")), Asked("code", ("def f",))]
WHOLE = scored(maths={"2 + 2": 1.0, "3 + 4": 0.0}, code={"def f": 0.25})


def test_scores_stand_beside_the_text_of_their_item_in_any_order() -> None:
    other = scored(code={"def f": 0.5}, maths={"3 + 4": 0.75, "2 + 2": 0.0})
    table = score_table(TASKS, {"a": WHOLE, "b": other})
    assert table.texts == ["2 + 2", "3 + 4", "def f"]
    assert table.scores.tolist() == [[1.0, 0.0], [0.0, 0.75], [0.25, 0.5]]


def test_who_cannot_be_scored_at_a_task_is_the_worst_there() -> None:
    other = scored(code={"def f": 0.5})
    third = scored(maths={"2 + 2": 0.5, "3 + 4": 0.5}, code={"def f": 0.0})
    table = score_table(TASKS, {"a": WHOLE, "b": other, "c": third})
    assert table.scores.tolist() == [[1.0, 0.5, 0.5], [0.0, 0.0, 0.5], [0.25, 0.5, 0.0]]


def test_items_that_have_no_score_are_told() -> None:
    with pytest.raises(EvaluationError, match="maths: 1 search items have no score, 3 \\+ 4-id"):
        score_table(TASKS, {"a": scored(maths={"2 + 2": 1.0}, code={"def f": 0.0})})
    with pytest.raises(EvaluationError, match="no expert has scores at task maths"):
        score_table(TASKS, {"a": scored(code={"def f": 0.0})})
