"""Heuristic-Average: a running mean that admits only what improves it (arXiv 2410.05357, 3.2)."""

from modelglue.search.greedy import by_score, greedy
from modelglue.search.problem import STRATEGIES, Problem
from modelglue.search.result import SearchResult


@STRATEGIES.register("heuristic_average")
def heuristic_average(problem: Problem) -> SearchResult:
    """Admit models by falling score into a plain mean, each only if the mean improves.

    With k candidates accepted so far, the next has weight 1 / (k + 2), so that all that were
    accepted always weigh the same. One trial a model.
    """
    return greedy(
        "heuristic_average",
        problem,
        shares=lambda accepted: [1 - 1 / (accepted + 2)],
        next_candidate=by_score,
    )
