"""Multiple choice by log-likelihood, as lm-evaluation-harness scores it.

The model never writes: each choice is scored as a continuation of the prompt, and the likeliest
one is the model's answer. `acc` takes the sum of log-probabilities, `acc_norm` that sum divided by
the length of the choice in characters (the harness calls it length-normalised; it counts
`len(choice)`, without the space put before it). Of equals the first wins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from modelglue.evaluate.examples import opening
from modelglue.evaluate.kinds import (
    Item,
    Measured,
    Settings,
    joined,
    kinds,
    option_problems,
    text_problems,
)
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.settings import Setting, few_shot


@kinds.register("multiple_choice")
class MultipleChoice:
    """Items: `{"id", "prompt", "choices": [text, …], "answer": index of the right one}`."""

    settings: Mapping[str, Setting] = {
        "metric": Setting(
            "choice", "acc_norm", "which of the two is the score", choices=("acc_norm", "acc")
        ),
        **few_shot(),
    }
    runs_code = False

    def problems(self, record: Mapping[str, Any]) -> list[str]:
        """See `Kind.problems`."""
        found = [*text_problems(record, "prompt"), *option_problems(record, "choice")]
        choices = record.get("choices")
        if not found and len(set(choices or ())) < len(choices or ()):
            found.append("choices: two of them are the same")
        return found

    def question(self, record: Mapping[str, Any]) -> str:
        """The prompt with its right choice: many a prompt ("Which of these is true?") recurs."""
        return f"{record['prompt']}\0{_right(record)}"

    def score(
        self,
        model: LanguageModel,
        items: Sequence[Item],
        settings: Settings,
        sandbox: Sandbox | None,
    ) -> Measured:
        """See `Kind.score`."""
        records = [item.record for item in items]
        before = opening(settings, lambda record: (record["prompt"], _right(record)))
        found = model.loglikelihoods(
            [before + record["prompt"] for record in records],
            [[joined(record["prompt"], c) for c in record["choices"]] for record in records],
        )
        metrics: dict[str, list[float]] = {"acc": [], "acc_norm": []}
        for record, likelihoods in zip(records, found, strict=True):
            totals = [likelihood.total for likelihood in likelihoods]
            normed = [t / len(c) for t, c in zip(totals, record["choices"], strict=True)]
            metrics["acc"].append(float(totals.index(max(totals)) == record["answer"]))
            metrics["acc_norm"].append(float(normed.index(max(normed)) == record["answer"]))
        return Measured(metrics[settings["metric"]], metrics)


def _right(record: Mapping[str, Any]) -> str:
    return str(record["choices"][record["answer"]])
