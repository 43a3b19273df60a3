"""Published benchmarks, their own solutions and wrong ones, through the code that scores models.

    python benchmarks/canonical.py --data FOLDER

FOLDER holds humaneval/, humanevalpack/ and gsm8k/ as they are published. Every program of HumanEval
and HumanEvalPack-JavaScript runs in a sandbox of its own, as in a report: first the canonical
solutions, then wrong ones: an empty body, a body that returns something else, and HumanEvalPack's
own buggy solutions. Of GSM8K every reference answer is taken for a model's.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelglue.evaluate.kinds import Item, settings_of
from modelglue.evaluate.kinds.generate import extracted
from modelglue.evaluate.sandbox import Sandbox, probe
from modelglue.evaluate.scores import TaskScores
from modelglue.evaluate.suites import gsm8k, humaneval, humanevalpack
from modelglue.evaluate.suites.published import Published, Row, read_rows
from modelglue.evaluate.suites.question import Question
from modelglue.evaluate.task import score_items

PYTHON_PACK = Published("humanevalpack", "bigcode/humanevalpack", ("humanevalpack_python.jsonl",))


class Answering:
    """A model that knows every answer by its prompt."""

    parameters_stored = parameters_active = 0

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[str]:
        return [self.answers[prompt] for prompt in prompts]

    def loglikelihoods(self, contexts: Any, continuations: Any) -> Any:
        raise NotImplementedError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the published files")
    data = parser.parse_args().data
    sandbox = probe()
    print(f"sandbox: {sandbox.name}, one per program")
    good = code("HumanEval, Python", humaneval, humaneval.TEST, PYTHON_PACK, 164, data, sandbox)
    pack = humanevalpack.JAVASCRIPT
    good &= code("HumanEvalPack, JavaScript", humanevalpack, pack, pack, 163, data, sandbox)
    good &= maths(data)
    return 0 if good else 1


def code(
    title: str,
    dataset: Any,
    source: Published,
    buggy: Published,
    least: int,
    data: Path,
    sandbox: Sandbox,
) -> bool:
    """Whether at least so many canonical solutions pass, and no wrong one does."""
    print(title)
    rows = read_rows(source, data)
    bugs = {humaneval.problem(row): row.text("buggy_solution") for row in read_rows(buggy, data)}
    closing = "}\n" if dataset is humanevalpack else ""
    answers: dict[str, Callable[[Row], str]] = {
        "canonical solutions": lambda row: row.text("canonical_solution"),
        "empty bodies": lambda row: closing or "    pass\n",
        "bodies that return something else": lambda row: f"    return 'other'\n{closing}",
        "buggy solutions": lambda row: bugs[humaneval.problem(row)],
    }
    good = True
    for name, answer in answers.items():
        began = time.monotonic()
        by_prompt = {row.text("prompt"): answer(row) for row in rows}
        scores = scored(dataset, dataset.questions(rows), Answering(by_prompt), sandbox)
        passed = int(sum(scores.values))
        fine = passed >= least if name == "canonical solutions" else passed == 0
        odd = "" if passed in (0, len(rows)) else f" ({listed(scores, passed > len(rows) / 2)})"
        print(
            f"  {name}: {passed}/{len(rows)} pass{odd}, {time.monotonic() - began:.0f} s"
            f"{'' if fine else '  <-- not as it should be'}"
        )
        good &= fine
    return good


def maths(data: Path) -> bool:
    """Whether every reference answer is found, equals itself, and differs from another number."""
    print("GSM8K")
    rows = read_rows(gsm8k.TEST, data)
    questions = gsm8k.questions(rows, read_rows(gsm8k.TRAIN, data))
    right = {question.record["prompt"]: question.record["answer"] for question in questions}
    # Every number in the answer's last line gets another digit in front.
    wrong = {prompt: re.sub(r"#### (-?)", r"#### \g<1>9", text) for prompt, text in right.items()}
    pattern = str(gsm8k.SETTINGS["extract"])
    found = sum(extracted(text, pattern) is not None for text in right.values())
    own = int(sum(scored(gsm8k, questions, Answering(right)).values))
    other = int(sum(scored(gsm8k, questions, Answering(wrong)).values))
    print(f"  reference answers in which a number is found: {found}/{len(rows)}")
    print(f"  reference answers equal to themselves: {own}/{len(rows)}")
    print(f"  other numbers equal to them: {other}/{len(rows)}")
    return found == own == len(rows) and other == 0


def scored(
    dataset: Any,
    questions: Sequence[Question],
    model: Answering,
    sandbox: Sandbox | None = None,
) -> TaskScores:
    items = [Item(question.id, question.id, question.record) for question in questions]
    settings = settings_of(dataset.KIND, dataset.SETTINGS)
    return score_items("canonical", dataset.KIND, settings, items, model, "report", sandbox)


def listed(scores: TaskScores, failed: bool) -> str:
    """The few that did otherwise than the rest."""
    few = [i for i, v in zip(scores.items, scores.values, strict=True) if bool(v) != failed]
    return f"{'not' if failed else 'only'} {', '.join(few[:5])}{' …' if len(few) > 5 else ''}"


if __name__ == "__main__":
    sys.exit(main())
