"""WinoGrande: which of two options fills the blank (Sakaguchi et al., 1907.10641).

Published at https://huggingface.co/datasets/allenai/winogrande (`winogrande_xl`; the validation
split, since the test split has no answers), and as `dev.jsonl` of the original release, as

    {"sentence": "… _ …", "option1", "option2", "answer": "1" or "2"}

Scored by partial evaluation, as lm-evaluation-harness does: what follows the blank, after the
sentence up to there with either option. tinyBenchmarks/tinyWinogrande holds 100 of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from modelglue.errors import TaskError
from modelglue.evaluate.suites.published import Published, Row, on_the_hub
from modelglue.evaluate.suites.question import Question, mark

KIND = "multiple_input"
SETTINGS: Mapping[str, Any] = {}
VALIDATION = Published(
    "winogrande",
    "allenai/winogrande",
    ("dev.jsonl", *on_the_hub("winogrande_xl", "validation")),
)
TINY = Published(
    "tinyWinogrande",
    "tinyBenchmarks/tinyWinogrande",
    on_the_hub("winogrande_xl", "validation"),
)


def questions(rows: Sequence[Row]) -> list[Question]:
    """All of them, in the order of the file."""
    return [_question(row) for row in rows]


def _question(row: Row) -> Question:
    sentence = row.text("sentence")
    before, blank, after = sentence.partition("_")
    ending = after.strip()
    if not blank or not ending:
        raise TaskError(f"{row.place}: sentence: has no blank _ with something after it")
    options = [row.text("option1"), row.text("option2")]
    return Question(
        id=row.name,
        record={
            "prompts": [before + option for option in options],
            "ending": ending,
            "answer": row.one_of(["1", "2"], "answer"),
        },
        marks=frozenset({mark(sentence, *sorted(options))}),
    )
