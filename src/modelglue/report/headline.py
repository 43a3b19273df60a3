"""The answer at the top of a report: did it help, by how much, how sure."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from modelglue.report import verdicts, words
from modelglue.report.data import RunReport

_REFUSED = "No merge helps here"


@dataclass(frozen=True)
class Headline:
    """The answer: did gluing help, by how much, how sure."""

    verdict: Literal["gain", "unclear", "loss", "unknown"]
    short: str
    sentence: str


def headline(report: RunReport) -> Headline:
    """The verdict on the glued model, and that no merge helps where none was accepted."""
    found, refusal = _against_the_best_single(report), verdicts.no_merge(report)
    if not refusal:
        return found
    if report.routing is not None and found.verdict in ("gain", "loss"):  # the mixture's, then
        return replace(found, sentence=f"{found.sentence} {refusal}")
    reason = refusal.removeprefix(f"{_REFUSED}: ")  # not said twice
    return Headline("unclear", _REFUSED, f"{reason[:1].upper()}{reason[1:]} {found.sentence}")


def _against_the_best_single(report: RunReport) -> Headline:
    best, glued = words.best_single(report), words.glued_row(report)
    if best is None or glued is None:
        return Headline("unknown", "No verdict", "The table has no glued model to compare.")
    scores = f"The glued model scores {words.score(glued.average)} on average"
    rival = f"the best single model ({best.name}, {words.score(best.average)})"
    gap = glued.difference
    if gap is None or not all(map(math.isfinite, (gap.mean, gap.low, gap.high))):
        sentence = f"{scores}, {rival} beside it; no interval was computed."
        return Headline("unknown", "No verdict", sentence)
    if gap.low == gap.high == 0:
        return Headline("unclear", "No gain shown", f"{scores}, exactly as {rival} does.")
    size = f"{abs(100 * gap.mean):.1f} points {'above' if gap.mean >= 0 else 'below'} {rival}"
    interval = f"95 % interval {words.points(gap.low)} to {words.points(gap.high)} points"
    if gap.low > 0:
        return Headline("gain", "Gluing helped", f"{scores}, {size}; {interval}.")
    if gap.high < 0:
        return Headline("loss", "No gain: gluing did harm", f"{scores}, {size}; {interval}.")
    return Headline("unclear", "No gain shown", f"{scores}, {size}; the {interval} includes 0.")
