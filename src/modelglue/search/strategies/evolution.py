"""Evolution: CMA-ES over all that a merge method lets a search turn (arXiv 2410.05357, 3.2)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modelglue.errors import ConfigError
from modelglue.search.evolution import Estimate, Plan, Standing, concluded, evolve
from modelglue.search.irt import estimator
from modelglue.search.knobs import Knob
from modelglue.search.problem import (
    ON,
    STRATEGIES,
    Option,
    Problem,
    Trial,
    Tried,
    completed,
    models_of,
    search,
    takes,
)
from modelglue.search.result import SearchResult
from modelglue.search.singles import best_first, score_singles
from modelglue.search.space import Space

SIGMA = 1 / 6
"""The paper's. From a warm start too: in simulations with a search's noise (300 items, 5 and 10
models) half of it found less from either start, twice as much found the same."""

OPTIONS: Mapping[str, Option] = {
    "trials": Option(
        "integer", 200, "candidates in all, the single models and a warm start's among them", low=1
    ),
    "population": Option(
        "integer", None, "candidates of a generation; 4 + 3 ln n for n coordinates", low=4
    ),
    "sigma": Option(
        "number", SIGMA, "how far the mixture of a group moves at first", low=1e-4, high=1.0
    ),
    "racing": Option("choice", "on", "stop candidates that cannot win", choices=("on", "off")),
    "race_level": Option(
        "number", 0.1, "the chance of stopping one that is as good as the best", low=1e-6, high=0.5
    ),
    "stages": Option(
        "integer",
        1,
        "stages, each of twice as many items as the one before; no more than there are blocks",
        low=1,
    ),
    "proxy": Option(
        "choice",
        "none",
        "irt: half of the items, the rest estimated from the abilities of the models",
        choices=("none", "irt"),
    ),
    "warm_start": Option("strategy", None, "the strategy whose result it starts from"),
    "group_size": Option(
        "integer", None, "adjacent layers that share coefficients; by default all do", low=1
    ),
    "roles": Option(
        "choice",
        "together",
        "whether attention and MLP have coefficients of their own",
        choices=("together", "apart"),
    ),
    "finalists": Option(
        "integer", 3, "of those that saw only some items, how many see all in the end", low=1
    ),
}


@STRATEGIES.register("evolution")
@takes(OPTIONS)
def evolution(problem: Problem) -> SearchResult:
    """Move a cloud of candidates towards the better half of each generation (Hansen, 2016).

    What is searched is told by `problem.dials`: weights (without the direction that normalising
    leaves dead), densities, λ or t, for all tensors or for groups of them. The cloud starts at the
    even mixture, or with `warm_start` at what another strategy found, which the paper finds better
    at fewer trials. The single models and the start are candidates too.

    Where the method takes fewer models than there are (`problem.most`), those of the warm start and
    the best single ones are searched.

    Differs from the paper: it drew weights and normalised them, which leaves a dead direction; it
    started each weight at random.

    Raises:
        ConfigError: the warm start reorders layers, so it has no weights to start from.
    """
    options = completed("evolution", problem.options)
    singles = score_singles(problem)
    standing = Standing.of_singles(singles)
    if len(problem.names) == 1 or problem.most == 1:
        return concluded("evolution", standing)
    warm = None if options["warm_start"] is None else _warm(problem, options["warm_start"])
    if warm is not None:
        _take_over(problem, warm, standing)
    space = Space(_names(problem, singles, warm), problem.dials)
    if warm is None:
        _meet_even(problem, space, standing)
    start = space.start if warm is None else space.point(warm.coefficients)
    evolve(problem, space, _plan(options, singles), start, standing)
    return concluded("evolution", standing)


def _plan(options: Mapping[str, Any], singles: Mapping[str, Trial]) -> Plan:
    return Plan(
        trials=options["trials"],
        sigma=options["sigma"],
        population=options["population"],
        level=options["race_level"] if options["racing"] in ON else None,
        stages=options["stages"],
        finalists=options["finalists"],
        estimate=_estimate(singles) if options["proxy"] == "irt" else None,
    )


def _estimate(singles: Mapping[str, Trial]) -> Estimate:
    known = {name: trial.scores for name, trial in singles.items() if trial.scores is not None}
    return estimator(known)


def _names(
    problem: Problem, singles: Mapping[str, Trial], warm: SearchResult | None
) -> tuple[str, ...]:
    """The models that are searched, in their order."""
    wanted = [*(models_of(warm.coefficients) if warm else ()), *best_first(singles)]
    moved = [name for name in dict.fromkeys(wanted) if name not in problem.dials.idle]
    chosen = moved[: problem.most]
    return tuple(name for name in problem.names if name in chosen)


def _meet_even(problem: Problem, space: Space, standing: Standing) -> None:
    """The even mixture, as one candidate for all groups: other strategies may have scored it."""
    plain = Space(space.names, replace(space.dials, groups=()))
    even = plain.candidate(plain.start)
    trial = problem.objective(even)
    problem.tell([Tried.on_all(even, trial, member=len(problem.names))])
    standing.meet(even, trial)


def _warm(problem: Problem, strategy: str) -> SearchResult:
    """What a strategy came to; it runs now if it has not run yet."""
    result = problem.results.get(strategy)
    if result is None:
        result = search(strategy, replace(problem, options=completed(strategy, {})))
    if any(Knob.parse(name).parameter.startswith("place ") for name in result.coefficients):
        raise ConfigError(
            f"warm_start: {strategy} reorders layers; evolution starts from weights of models"
        )
    return result


def _take_over(problem: Problem, warm: SearchResult, standing: Standing) -> None:
    """Count what the warm start tried, and let its winner be a candidate."""
    before = len(standing.asked), sum(standing.asked.values())
    trial = problem.objective(warm.coefficients)
    problem.tell([Tried.on_all(warm.coefficients, trial)])
    standing.meet(warm.coefficients, trial)
    met = len(standing.asked) - before[0], sum(standing.asked.values()) - before[1]
    standing.earlier = (
        max(0, warm.trials - before[0] - met[0]),
        max(0, warm.items - before[1] - met[1]),
    )
