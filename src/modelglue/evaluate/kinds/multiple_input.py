"""The same ending after several beginnings: which of them makes it likeliest?

So Winograd schemas are scored (partial evaluation, Trinh and Le, 1806.02847), by
lm-evaluation-harness too, which speaks of multiple inputs: each option is put into the blank, and
what follows the blank is scored, so that the options' own likelihoods don't count. Of equals the
first wins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from modelglue.evaluate.kinds import Item, Measured, Settings, joined, kinds, text_problems
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
        found = text_problems(record, "ending")
        prompts = record.get("prompts")
        if "prompts" not in record:
            found.append("prompts: is missing")
        elif not isinstance(prompts, list) or len(prompts) < 2:
            found.append("prompts: must be a list of at least two texts")
        elif not all(isinstance(prompt, str) and prompt for prompt in prompts):
            found.append("prompts: must all be text, none of them empty")
        answer = record.get("answer")
        if "answer" not in record:
            found.append("answer: is missing")
        elif isinstance(answer, bool) or not isinstance(answer, int):
            found.append(f"answer: must be the index of a prompt, not {answer!r:.60}")
        elif isinstance(prompts, list) and not 0 <= answer < len(prompts):
            found.append(f"answer: {answer} is no index of {len(prompts)} prompts, counted from 0")
        return found

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
