"""Heuristic-Coefficient: each model at its best share (arXiv 2410.05357, 3.2)."""

from modelglue.search.greedy import by_score, greedy
from modelglue.search.problem import STRATEGIES, Problem
from modelglue.search.result import SearchResult

SHARES = tuple(step / 10 for step in range(1, 10))


@STRATEGIES.register("heuristic_coefficient")
def heuristic_coefficient(problem: Problem) -> SearchResult:
    """Try c·incumbent + (1 − c)·candidate for c = 0.1 … 0.9, candidates by falling score.

    Nine trials a model. Flattened, the first model weighs ∏cⱼ and the i-th accepted
    (1 − cᵢ)·∏_{j>i} cⱼ.
    """
    return greedy(
        "heuristic_coefficient",
        problem,
        shares=lambda accepted: SHARES,
        next_candidate=by_score,
    )
