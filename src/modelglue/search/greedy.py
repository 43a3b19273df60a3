"""The greedy frame that the paper's three heuristics share (Model-GLUE, arXiv 2410.05357, 3.2).

Start from the best single model. Let the others come up one by one; try each in some mixtures
with the incumbent; keep the best of these if it beats the incumbent, else drop the candidate.
The heuristics differ in the order of the candidates and in the mixtures that are tried.

Candidates are ordered by their score on the *search* items. The published code takes the order
from test scores and writes the last coefficient tried instead of the best; neither happens here.
"""

import operator
from collections.abc import Callable, Iterable, Sequence

from modelglue.search.problem import Coefficients, Problem, Trial, Tried, canonical
from modelglue.search.result import SearchResult, Step
from modelglue.search.singles import best_first, score_singles

NextCandidate = Callable[[Coefficients, Sequence[str]], str]
"""(incumbent, models that have not had their turn, best first) → the model whose turn it is."""

Shares = Callable[[int], Iterable[float]]
"""Models accepted so far → the incumbent's shares c to try in c·incumbent + (1 − c)·candidate."""


Keep = Callable[[float, float], bool]
"""(score with the candidate, score of the incumbent) → whether the candidate is kept."""


def greedy(
    strategy: str,
    problem: Problem,
    *,
    shares: Shares,
    next_candidate: NextCandidate,
    keep: Keep = operator.gt,
) -> SearchResult:
    """Run the frame.

    Equal scores go to what came first: the earlier model in `problem.names`, the incumbent over
    a candidate (unless `keep` says otherwise), the smaller share over the larger. A mixture that
    cannot be scored is never kept.
    """
    singles = score_singles(problem)
    asked: dict[tuple[tuple[str, float], ...], int] = {
        ((name, 1.0),): trial.items for name, trial in singles.items()
    }
    waiting = best_first(singles)
    start = waiting.pop(0)
    incumbent: dict[str, float] = {start: 1.0}
    best = singles[start].mean
    steps = [Step(start, None, best, best, True, "the best single model on the search items")]
    accepted = 0
    while waiting:
        candidate = next_candidate(incumbent, tuple(waiting))
        waiting.remove(candidate)
        if problem.most is not None and len(incumbent) >= problem.most:
            steps.append(Step(candidate, None, best, best, False, _full(problem.most)))
            continue
        tried = {share: mix(incumbent, candidate, share) for share in shares(accepted)}
        trials = dict(zip(tried, problem.objective.many(list(tried.values())), strict=True))
        problem.tell([Tried.on_all(tried[s], trials[s], member=i) for i, s in enumerate(tried)])
        asked |= {tuple(tried[s].items()): trials[s].items for s in tried}
        share = max(trials, key=lambda share: trials[share].mean)
        score = trials[share].mean
        kept = trials[share].scores is not None and keep(score, best)
        steps.append(Step(candidate, share, score, best, kept, _reason(kept, trials[share], best)))
        if kept:
            incumbent, best, accepted = tried[share], score, accepted + 1
    return SearchResult(
        strategy, incumbent, best, tuple(steps), len(asked), items=sum(asked.values())
    )


def mix(incumbent: Coefficients, candidate: str, share: float) -> dict[str, float]:
    """Flatten share·incumbent + (1 − share)·candidate to one linear merge.

    >>> mix({"a": 1.0}, "b", 0.75)
    {'a': 0.75, 'b': 0.25}
    """
    shrunk = {name: share * weight for name, weight in incumbent.items()}
    return canonical({**shrunk, candidate: 1 - share})


def by_score(incumbent: Coefficients, waiting: Sequence[str]) -> str:
    """The best of those that wait."""
    return waiting[0]


def _full(most: int) -> str:
    models = "one model" if most == 1 else f"{most} models"
    return f"the method merges at most {models} here"


def _reason(kept: bool, trial: Trial, best: float) -> str:
    if trial.scores is None:
        return f"cannot be scored: {trial.failure}"
    gain = trial.mean - best
    if gain == 0:
        return "leaves the search score as it was"
    if kept:
        return f"raises the search score by {100 * gain:.2f} points"
    return f"at best lowers the search score by {-100 * gain:.2f} points"
