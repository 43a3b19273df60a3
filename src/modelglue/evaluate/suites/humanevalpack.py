"""HumanEvalPack: HumanEval's problems in other languages (Muennighoff et al., 2308.07124).

Published at https://huggingface.co/datasets/bigcode/humanevalpack (`data/js/data/`) and beside
bigcode-project/octopack (`humanevalpack_js.jsonl`) as

    {"task_id": "JavaScript/0", "prompt", "canonical_solution", "test", "entry_point", …}

`test` calls its own function. A prompt ends in `const name = (…) => {`, and a completion ends where
the next thing begins on the top level: where MultiPL-E (2208.08227) ends `function name(…) {` (a
function, a comment, output), or at another name or the exports.
"""

import math
from collections.abc import Sequence
from hashlib import sha256

from modelglue.evaluate.suites import humaneval
from modelglue.evaluate.suites.published import Published, Row
from modelglue.evaluate.suites.question import Question

KIND = "code"
SETTINGS = {
    "language": "javascript",
    "stop": [
        *("\nfunction ", "\n/*", "\n//", "\nconsole.log"),
        *("\nconst ", "\nlet ", "\nvar ", "\nmodule.exports"),
    ],
    "max_new_tokens": 512,
    "temperature": 0.2,
    "top_p": 0.95,
}
JAVASCRIPT = Published(
    "humanevalpack",
    "bigcode/humanevalpack",
    ("humanevalpack_js.jsonl", "data/js/data/humanevalpack.jsonl", "js/test-*.parquet"),
)
_SHARE = 5


def questions(rows: Sequence[Row]) -> list[Question]:
    """All of them, in the order of the file."""
    return [
        Question(
            id=row.text("task_id"),
            record={"prompt": row.text("prompt"), "tests": row.text("test")},
            marks=frozenset({humaneval.problem(row)}),
        )
        for row in rows
    ]


def a_fifth(rows: Sequence[Row]) -> list[Question]:
    """Those whose id has one of the smallest hashes: a fifth, whatever the order of the file."""
    every = questions(rows)
    ordered = sorted((question.id for question in every), key=_hash)
    chosen = set(ordered[: math.ceil(len(every) / _SHARE)])
    return [question for question in every if question.id in chosen]


def _hash(name: str) -> bytes:
    return sha256(name.encode()).digest()
