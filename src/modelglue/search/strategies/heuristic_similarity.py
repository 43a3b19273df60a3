"""Heuristic-Similarity: the next model is the one nearest to what stands (arXiv 2410.05357, 3.2).

The paper leaves open whether the most or the least similar model comes next; both are here.
"""

from collections.abc import Callable, Sequence

from modelglue.search.greedy import greedy
from modelglue.search.problem import STRATEGIES, Coefficients, Problem
from modelglue.search.result import SearchResult
from modelglue.search.strategies.heuristic_coefficient import SHARES


@STRATEGIES.register("heuristic_similarity")
def heuristic_similarity(problem: Problem) -> SearchResult:
    """Like Heuristic-Coefficient; the candidate is the most similar to the merged model so far."""
    return _by_similarity("heuristic_similarity", problem, max)


@STRATEGIES.register("heuristic_dissimilarity")
def heuristic_dissimilarity(problem: Problem) -> SearchResult:
    """Like Heuristic-Coefficient; the candidate is the least similar to the merged model so far."""
    return _by_similarity("heuristic_dissimilarity", problem, min)


def _by_similarity(name: str, problem: Problem, pick: Callable[..., str]) -> SearchResult:
    def next_candidate(incumbent: Coefficients, waiting: Sequence[str]) -> str:
        return pick(waiting, key=lambda model: problem.similarity(incumbent, model))

    return greedy(name, problem, shares=lambda accepted: SHARES, next_candidate=next_candidate)
