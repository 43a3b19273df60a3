"""The likelihood of a reference text, for chat and plain language.

`nll` is the mean negative log-likelihood per UTF-8 byte of the reference (natural logarithm; a
byte, unlike a token, is the same for every tokenizer), and the score is exp(−nll): the geometric
mean of the bytes' probabilities, in (0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modelglue.evaluate.examples import opening
from modelglue.evaluate.kinds import Item, Measured, Settings, joined, kinds, text_problems
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.settings import Setting, few_shot


@kinds.register("text")
class Text:
    """Items: `{"id", "text": what comes before, "reference"}`; `prompt` serves for `text`."""

    settings: Mapping[str, Setting] = few_shot()
    runs_code = False

    def problems(self, record: Mapping[str, Any]) -> list[str]:
        """See `Kind.problems`."""
        before = [name for name in ("text", "prompt") if name in record]
        found = text_problems(record, *before, empty=True)
        if len(before) == 2:
            found.append("prompt: stands beside text; one of them comes before the reference")
        return found + text_problems(record, "reference")

    def question(self, record: Mapping[str, Any]) -> str:
        """What comes before, with the reference: the former may be nothing."""
        return f"{_before(record)}\0{record['reference']}"

    def score(
        self,
        model: LanguageModel,
        items: Sequence[Item],
        settings: Settings,
        sandbox: Sandbox | None,
    ) -> Measured:
        """See `Kind.score`."""
        before = opening(settings, lambda record: (_before(record), record["reference"]))
        contexts = [before + _before(item.record) for item in items]
        references = [item.record["reference"] for item in items]
        found = model.loglikelihoods(
            contexts, [[joined(c, r)] for c, r in zip(contexts, references, strict=True)]
        )
        nll = [
            -likelihood.total / len(reference.encode())
            for (likelihood,), reference in zip(found, references, strict=True)
        ]
        return Measured([math.exp(-value) for value in nll], {"nll": nll})


def _before(record: Mapping[str, Any]) -> str:
    return str(record.get("text", record.get("prompt", "")))
