"""MBPP: short Python functions for beginners, tested (Austin et al., 2108.07732).

Published at https://huggingface.co/datasets/google-research-datasets/mbpp (configuration `full`),
and as one `mbpp.jsonl` in google-research, whose task ids say the split (11–510 test, 511–600
validation), as

    {"task_id", "text", "code", "test_list": [assertions], "test_setup_code"}

The prompt is a docstring that holds the description and the first assertion, as InCoder
(2204.05999) and bigcode-evaluation-harness have it; lm-evaluation-harness's three examples are in
no form that could be run. All assertions count.
"""

from collections.abc import Callable, Sequence

from modelglue.errors import TaskError
from modelglue.evaluate.suites.published import Published, Row, on_the_hub
from modelglue.evaluate.suites.question import Question, mark

KIND = "code"
SETTINGS = {
    "stop": ["\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"],
    "max_new_tokens": 512,
    "temperature": 0.2,
    "top_p": 0.95,
}
_HUB = "google-research-datasets/mbpp"
TEST = Published("mbpp", _HUB, (*on_the_hub("full", "test"), "mbpp.jsonl"))
VALIDATION = Published("mbpp", _HUB, (*on_the_hub("full", "validation"), "mbpp.jsonl"))


def questions_of(ids: range) -> Callable[[Sequence[Row]], list[Question]]:
    """Of a file, those with such an id."""

    def questions(rows: Sequence[Row]) -> list[Question]:
        return [_question(row) for row in rows if row.value("task_id") in ids]

    return questions


test_questions = questions_of(range(11, 511))
validation_questions = questions_of(range(511, 601))


def _question(row: Row) -> Question:
    name, text, tests = str(row.value("task_id")), row.text("text"), row.texts("test_list")
    if not tests:
        raise TaskError(f"{row.place}: test_list: is empty")
    setup = str(row.record.get("test_setup_code") or "")
    return Question(
        id=name,
        record={
            "prompt": f'"""\n{text}\n{tests[0]}\n"""\n',
            "tests": "\n".join([setup, *tests]),
        },
        marks=frozenset({f"id {name}", mark(text, tests[0])}),
    )
