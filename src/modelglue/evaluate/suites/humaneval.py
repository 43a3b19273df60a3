"""HumanEval: Python functions to be completed from their docstring (Chen et al., 2107.03374).

Published in openai/human-eval (`HumanEval.jsonl.gz`) and at
https://huggingface.co/datasets/openai/openai_humaneval as

    {"task_id": "HumanEval/0", "prompt", "canonical_solution", "test", "entry_point"}

`test` defines `check`, which is called with the function of the name `entry_point`.
"""

from collections.abc import Sequence

from modelglue.evaluate.suites.published import Published, Row, on_the_hub
from modelglue.evaluate.suites.question import Question

KIND = "code"
SETTINGS = {
    "stop": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
    "max_new_tokens": 512,
    "temperature": 0.2,
    "top_p": 0.95,
}
TEST = Published(
    "humaneval",
    "openai/openai_humaneval",
    ("HumanEval.jsonl.gz", "HumanEval.jsonl", *on_the_hub("openai_humaneval", "test")),
)


def questions(rows: Sequence[Row]) -> list[Question]:
    """All of them, in the order of the file."""
    return [_question(row) for row in rows]


def problem(row: Row) -> str:
    """The problem's number, which its translations share."""
    return f"problem {row.text('task_id').rpartition('/')[2]}"


def _question(row: Row) -> Question:
    return Question(
        id=row.text("task_id"),
        record={
            "prompt": row.text("prompt"),
            "tests": f"{row.text('test')}\ncheck({row.text('entry_point')})",
        },
        marks=frozenset({problem(row)}),
    )
