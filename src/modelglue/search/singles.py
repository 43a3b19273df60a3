"""The models alone: every search begins with them, and none ends below the best of them."""

from collections.abc import Mapping

from modelglue.errors import EvaluationError
from modelglue.search.problem import Problem, Trial, Tried


def score_singles(problem: Problem) -> dict[str, Trial]:
    """Every model alone on all items, in the order of the names.

    Raises:
        EvaluationError: none of them can be scored.
    """
    alone = [{name: 1.0} for name in problem.names]
    singles = dict(zip(problem.names, problem.objective.many(alone), strict=True))
    problem.tell(
        [Tried.on_all({n: 1.0}, trial, member=i) for i, (n, trial) in enumerate(singles.items())]
    )
    if all(trial.scores is None for trial in singles.values()):
        reasons = "; ".join(f"{name}: {trial.failure}" for name, trial in singles.items())
        raise EvaluationError(f"no model can be scored, so there is nothing to merge: {reasons}")
    return singles


def best_first(singles: Mapping[str, Trial]) -> list[str]:
    """The models by falling score; equal ones in their order."""
    return sorted(singles, key=lambda name: -singles[name].mean)
