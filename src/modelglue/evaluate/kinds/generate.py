"""Generation with exact match: the model writes, and what counts is extracted from it.

The *last* match of `extract` in the completion is the model's answer (a chain of thought may try
several), or with `take: first` the first one: the pattern's first group that matched, or the whole
match if it has no groups; without a pattern, the whole completion. White space is normalised on
both sides. The reference is extracted in the same way where the pattern matches it, so that
"… #### 42" may stand in the file as well as "42". A completion in which the pattern is not found is
wrong.
With examples and without `stop`, a completion ends at a blank line, as in lm-evaluation-harness.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from modelglue.evaluate.encoding import before_stop
from modelglue.evaluate.examples import SEPARATOR, opening
from modelglue.evaluate.kinds import Item, Measured, Settings, kinds, text_problems
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.settings import Setting, few_shot, generation


@kinds.register("generate")
class Generate:
    """Items: `{"id", "prompt", "answer": text}`."""

    settings: Mapping[str, Setting] = {
        "extract": Setting("pattern", None, "what of a completion is the answer"),
        "take": Setting("choice", "last", "which match is the answer", choices=("last", "first")),
        "ignore": Setting("pattern", None, "what does not count in answers: thousands commas, say"),
        **few_shot(),
        **generation(max_new_tokens=64),
    }
    runs_code = False

    def problems(self, record: Mapping[str, Any]) -> list[str]:
        """See `Kind.problems`."""
        return text_problems(record, "prompt", "answer")

    def question(self, record: Mapping[str, Any]) -> str:
        """The prompt."""
        return str(record["prompt"])

    def score(
        self,
        model: LanguageModel,
        items: Sequence[Item],
        settings: Settings,
        sandbox: Sandbox | None,
    ) -> Measured:
        """See `Kind.score`."""
        before = opening(settings, lambda record: (record["prompt"], record["answer"]))
        # Behind examples a model goes on to the next one, where another last match would stand.
        stop = settings["stop"] or ((SEPARATOR,) if before else ())
        written = model.generate(
            [before + item.record["prompt"] for item in items],
            max_new_tokens=settings["max_new_tokens"],
            stop=stop,
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            seed=settings["seed"],
        )
        values = []
        for item, completion in zip(items, written, strict=True):
            reference = item.record["answer"]
            how = settings["extract"], settings["take"]
            expected = extracted(reference, *how)
            given = extracted(before_stop(completion, stop), *how)
            right = _normalised(reference) if expected is None else expected
            ignored = settings["ignore"] or r"(?!)"
            same = given is not None and re.sub(ignored, "", given) == re.sub(ignored, "", right)
            values.append(float(same))
        return Measured(values)


def extracted(text: str, pattern: str | None, take: str = "last") -> str | None:
    """The answer in `text`, white space normalised; None if the pattern is not found.

    >>> extracted("6 + 1 = 7 #### 7, no: ####  8 ", r"#### *(-?[0-9]+)")
    '8'
    """
    if pattern is None:
        return _normalised(text)
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    match = matches[0 if take == "first" else -1]
    groups = [group for group in match.groups() if group is not None]
    return _normalised(groups[0] if groups else match.group())


def _normalised(text: str) -> str:
    return " ".join(text.split())
