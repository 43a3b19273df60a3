"""Greedy soup: a uniform average that takes in whatever does not harm it (arXiv 2203.05482)."""

import operator

from modelglue.search.greedy import by_score, greedy
from modelglue.search.problem import STRATEGIES, Problem
from modelglue.search.result import SearchResult


@STRATEGIES.register("greedy_soup")
def greedy_soup(problem: Problem) -> SearchResult:
    """Let models by falling score into a uniform average, each unless the score falls.

    Recipe 1 of Wortsman et al.: an ingredient stays where the held-out score with it is at least
    what it was. That is all that parts it from Heuristic-Average, which keeps only what improves
    the score: where models tie, the soup is the larger of the two and averages more noise away,
    and Heuristic-Average is the cheaper merge. One trial a model.
    """
    return greedy(
        "greedy_soup",
        problem,
        shares=lambda accepted: [1 - 1 / (accepted + 2)],
        next_candidate=by_score,
        keep=operator.ge,
    )
