"""The same ending after several beginnings: which of them makes it likeliest?

So Winograd schemas are scored (partial evaluation, Trinh and Le, 1806.02847), by
lm-evaluation-harness too, which speaks of multiple inputs: each option is put into the blank, and
what follows the blank is scored, so that the options' own likelihoods don't count. Of equals the
first wins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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
from modelglue.evaluate.settings import Setting


@kinds.register("multiple_input")
class MultipleInput:
    """Items: `{"id", "prompts": [text, …], "ending": text, "answer": index of the right one}`."""

    settings: Mapping[str, Setting] = {}
    runs_code = False

    def problems(self, record: Mapping[str, Any]) -> list[str]:
        """See `Kind.problems`."""
        return [*text_problems(record, "ending"), *option_problems(record, "prompt")]

    def question(self, record: Mapping[str, Any]) -> str:
        """All beginnings, with the ending."""
        return "\0".join([*record["prompts"], record["ending"]])

    def score(
        self,
        model: LanguageModel,
        items: Sequence[Item],
        settings: Settings,
        sandbox: Sandbox | None,
    ) -> Measured:
        """See `Kind.score`."""
        rows = [(p, item.record["ending"]) for item in items for p in item.record["prompts"]]
        found = iter(
            model.loglikelihoods(
                [prompt for prompt, _ in rows], [[joined(*prompt_ending)] for prompt_ending in rows]
            )
        )
        values = []
        for item in items:
            totals = [next(found)[0].total for _ in item.record["prompts"]]
            values.append(float(totals.index(max(totals)) == item.record["answer"]))
        return Measured(values, {"acc": list(values)})
