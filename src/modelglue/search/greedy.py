"""The greedy frame that the paper's three heuristics share (Model-GLUE, arXiv 2410.05357, 3.2).

Start from the best single model. Let the others come up one by one; try each in some mixtures
with the incumbent; keep the best of these if it beats the incumbent, else drop the candidate.
The heuristics differ in the order of the candidates and in the mixtures that are tried.

Candidates are ordered by their score on the *search* items. The published code takes the order
from test scores and writes the last coefficient tried instead of the best; neither happens here.
"""

from collections.abc import Callable, Iterable, Sequence

from modelglue.search.problem import Coefficients, Problem, SearchResult, Step, canonical

NextCandidate = Callable[[Coefficients, Sequence[str]], str]
"""(incumbent, models that have not had their turn, best first) → the model whose turn it is."""

Shares = Callable[[int], Iterable[float]]
"""Models accepted so far → the incumbent's shares c to try in c·incumbent + (1 − c)·candidate."""


def greedy(
    strategy: str, problem: Problem, *, shares: Shares, next_candidate: NextCandidate
) -> SearchResult:
    """Run the frame.

    Equal scores go to what came first: the earlier model in `problem.names`, the incumbent over
    a candidate, the smaller share over the larger.
    """
    asked: set[tuple[tuple[str, float], ...]] = set()

    def score(coefficients: Coefficients) -> float:
        asked.add(tuple(coefficients.items()))
        return problem.objective(coefficients).mean

    alone = {name: score({name: 1.0}) for name in problem.names}
    waiting = sorted(problem.names, key=lambda name: -alone[name])
    start = waiting.pop(0)
    incumbent: dict[str, float] = {start: 1.0}
    best = alone[start]
    steps = [Step(start, None, best, best, True, "the best single model on the search items")]
    accepted = 0
    while waiting:
        candidate = next_candidate(incumbent, tuple(waiting))
        waiting.remove(candidate)
        if problem.most is not None and len(incumbent) >= problem.most:
            steps.append(Step(candidate, None, best, best, False, _full(problem.most)))
            continue
        tried = {share: mix(incumbent, candidate, share) for share in shares(accepted)}
        scores = {share: score(mixture) for share, mixture in tried.items()}
        share = max(scores, key=lambda share: scores[share])
        keep = scores[share] > best
        steps.append(
            Step(candidate, share, scores[share], best, keep, _reason(keep, scores[share] - best))
        )
        if keep:
            incumbent, best, accepted = tried[share], scores[share], accepted + 1
    return SearchResult(strategy, incumbent, best, tuple(steps), len(asked))


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


def _reason(kept: bool, gain: float) -> str:
    points = f"{100 * abs(gain):.2f} points"
    if kept:
        return f"raises the search score by {points}"
    if gain == 0:
        return "leaves the search score as it was"
    return f"at best lowers the search score by {points}"
