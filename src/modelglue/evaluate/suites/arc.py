"""ARC-Challenge: science questions that retrieval and co-occurrence fail (Clark, 1803.05457).

Published at https://huggingface.co/datasets/allenai/ai2_arc as

    {"id", "question", "choices": {"text": [...], "label": ["A", ...]}, "answerKey": "A"}

and in the original release (allenai.org/data/arc, `ARC-Challenge-Test.jsonl`) as

    {"id", "question": {"stem", "choices": [{"text", "label"}, ...]}, "answerKey"}

The prompt is lm-evaluation-harness's, and so is the score: likelihood by length, `acc_norm`.
tinyBenchmarks/tinyAI2_arc holds 100 of the test questions in the first form, ids included.
"""

from collections.abc import Mapping, Sequence

from modelglue.evaluate.suites.published import Published, Row, on_the_hub
from modelglue.evaluate.suites.question import Question, mark

KIND, SETTINGS = "multiple_choice", {"metric": "acc_norm"}
TEST = Published(
    "arc",
    "allenai/ai2_arc",
    ("ARC-Challenge-Test.jsonl", *on_the_hub("ARC-Challenge", "test")),
)
TINY = Published("tinyAI2_arc", "tinyBenchmarks/tinyAI2_arc", on_the_hub("ARC-Challenge", "test"))


def questions(rows: Sequence[Row]) -> list[Question]:
    """All of them, in the order of the file."""
    return [_question(row) for row in rows]


def _question(row: Row) -> Question:
    if isinstance(row.value("question"), Mapping):
        stem = row.text("question", "stem")
        listed = [Row(row.name, row.place, each) for each in row.value("question", "choices")]
        choices = [each.text("text") for each in listed]
        labels = [each.text("label") for each in listed]
    else:
        stem = row.text("question")
        choices, labels = row.texts("choices", "text"), row.texts("choices", "label")
    name = row.text("id")
    return Question(
        id=name,
        record={
            "prompt": f"Question: {stem}\nAnswer:",
            "choices": choices,
            "answer": row.one_of(labels, "answerKey"),
        },
        marks=frozenset({f"id {name}", mark(stem, *sorted(choices))}),
    )
