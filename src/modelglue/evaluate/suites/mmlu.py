"""MMLU: 57 subjects, four choices each (Hendrycks et al., 2009.03300).

Published at https://huggingface.co/datasets/cais/mmlu (configuration `all`) as

    {"question", "subject", "choices": [four texts], "answer": 0 … 3}

The prompt is lm-evaluation-harness's without examples: the subject named, the choices lettered, and
the letter's likelihood is the score, `acc`. tinyBenchmarks/tinyMMLU holds 100 of the test questions
in the same form.
"""

from collections.abc import Sequence

from modelglue.errors import TaskError
from modelglue.evaluate.suites.published import Published, Row, on_the_hub
from modelglue.evaluate.suites.question import Question, mark

KIND, SETTINGS = "multiple_choice", {"metric": "acc"}
TEST = Published("mmlu", "cais/mmlu", on_the_hub("all", "test"))
TINY = Published("tinyMMLU", "tinyBenchmarks/tinyMMLU", on_the_hub("all", "test"))
_LETTERS = ["A", "B", "C", "D"]


def questions(rows: Sequence[Row]) -> list[Question]:
    """All of them, in the order of the file."""
    return [_question(row) for row in rows]


def _question(row: Row) -> Question:
    question, subject = row.text("question").strip(), row.text("subject")
    choices = row.texts("choices")
    if len(choices) != len(_LETTERS):
        raise TaskError(f"{row.place}: choices: must be four, not {len(choices)}")
    lettered = (f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True))
    head = "The following are multiple choice questions (with answers) about"
    opening = f"{head} {subject.replace('_', ' ')}.\n\n"
    return Question(
        id=row.name,
        record={
            "prompt": opening + "\n".join([question, *lettered, "Answer:"]),
            "choices": _LETTERS,
            "answer": row.one_of(["0", "1", "2", "3"], "answer"),
        },
        # Many a question ("Which of these is true?") recurs with other choices.
        marks=frozenset({mark(question, *choices)}),
        opening=opening,
    )
