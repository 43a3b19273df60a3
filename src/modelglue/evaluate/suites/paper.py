"""The tasks of Model-GLUE (2410.05357): small proxies for the search, test sets for the report.

| task | search | report |
|---|---|---|
| arc_challenge | tinyBenchmarks' 100 anchors (2402.14992) | the rest of the test split |
| winogrande | tinyBenchmarks' 100 anchors | the rest of the validation split |
| mmlu, gsm8k | tinyBenchmarks' 100 anchors | the rest of the test split |
| mbpp | validation split | test split |
| humaneval | a fifth of HumanEvalPack, in JavaScript | the rest of HumanEval, in Python |

Where a question of the search stands in the report's data, in whatever language, it is left out
there. Metrics are the paper's: acc_norm for ARC, acc for WinoGrande and MMLU, exact match for
GSM8K, pass@1 for code, from one sample at temperature 0.2, top-p 0.95.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelglue.evaluate.suites import arc, gsm8k, humaneval, humanevalpack, mbpp, mmlu, winogrande
from modelglue.evaluate.suites.published import Published
from modelglue.evaluate.suites.question import Question


@dataclass(frozen=True)
class Part:
    """One split of one task.

    Attributes:
        kind: of our task kinds.
        settings: of the kind, where they differ from the default.
        sources: the published splits that it needs.
        questions: their rows, one list a source → its questions.
    """

    kind: str
    settings: Mapping[str, Any]
    sources: tuple[Published, ...]
    questions: Callable[..., list[Question]]


@dataclass(frozen=True)
class Pair:
    """The two splits of one task."""

    search: Part
    report: Part


def _anchors(dataset: Any, tiny: Published, whole: Published, *more: Published) -> Pair:
    def part(split: Published) -> Part:
        return Part(dataset.KIND, dataset.SETTINGS, (split, *more), dataset.questions)

    return Pair(part(tiny), part(whole))


PAPER: Mapping[str, Pair] = {
    "arc_challenge": _anchors(arc, arc.TINY, arc.TEST),
    "winogrande": _anchors(winogrande, winogrande.TINY, winogrande.VALIDATION),
    "mmlu": _anchors(mmlu, mmlu.TINY, mmlu.TEST),
    "gsm8k": _anchors(gsm8k, gsm8k.TINY, gsm8k.TEST, gsm8k.TRAIN),
    "mbpp": Pair(
        Part(mbpp.KIND, mbpp.SETTINGS, (mbpp.VALIDATION,), mbpp.validation_questions),
        Part(mbpp.KIND, mbpp.SETTINGS, (mbpp.TEST,), mbpp.test_questions),
    ),
    "humaneval": Pair(
        Part(
            humanevalpack.KIND,
            humanevalpack.SETTINGS,
            (humanevalpack.JAVASCRIPT,),
            humanevalpack.a_fifth,
        ),
        Part(humaneval.KIND, humaneval.SETTINGS, (humaneval.TEST,), humaneval.questions),
    ),
}
