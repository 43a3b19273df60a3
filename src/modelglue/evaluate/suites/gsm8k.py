"""GSM8K: word problems of a few steps (Cobbe et al., 2110.14168).

Published at https://huggingface.co/datasets/openai/gsm8k (configuration `main`) and in
openai/grade-school-math (`train.jsonl`, `test.jsonl`) as

    {"question", "answer": "steps … #### 42"}

The prompt is lm-evaluation-harness's with five solved examples; ours are always the first five of
the train split, where the harness draws other ones for every question. Completions end and are
judged as by its `strict-match`: the first number after "#### " counts, commas and a full stop at
its end left out; one behind a dollar sign is not found.
tinyBenchmarks/tinyGSM8k holds 100 of the test questions in the same form.
"""

from collections.abc import Sequence

from modelglue.errors import TaskError
from modelglue.evaluate.suites.published import Published, Row, on_the_hub
from modelglue.evaluate.suites.question import Question, mark

KIND = "generate"
SETTINGS = {
    "extract": r"#### (-?[0-9.,]+)",
    "take": "first",
    "ignore": r",|\.(?=,*$)",
    "stop": ["Question:", "</s>", "<|im_end|>"],
    "max_new_tokens": 256,
}
TEST = Published("gsm8k", "openai/gsm8k", ("test.jsonl", *on_the_hub("main", "test")))
TRAIN = Published("gsm8k", "openai/gsm8k", ("train.jsonl", *on_the_hub("main", "train")))
TINY = Published("tinyGSM8k", "tinyBenchmarks/tinyGSM8k", on_the_hub("main", "test"))
_SHOTS = 5


def questions(rows: Sequence[Row], examples: Sequence[Row]) -> list[Question]:
    """All of `rows`, in the order of the file, after the first of `examples`, solved."""
    if len(examples) < _SHOTS:
        raise TaskError(f"{examples[0].place}: holds fewer than {_SHOTS} examples")
    solved = "".join(f"{_asked(row)} {row.text('answer')}\n\n" for row in examples[:_SHOTS])
    return [
        Question(
            id=row.name,
            record={"prompt": solved + _asked(row), "answer": row.text("answer")},
            marks=frozenset({mark(row.text("question"))}),
            opening=solved,
        )
        for row in rows
    ]


def _asked(row: Row) -> str:
    return f"Question: {row.text('question')}\nAnswer:"
