"""An evolution of candidates: what one generation does, and what stands at the end.

A generation is drawn (`sampler`), scored in a race or on all items, and told. Early generations may
see fewer blocks, and unseen items may be estimated; what is returned was scored on all of them.

It never ends below the best single model, nor below what it started from: both are candidates.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from modelglue.search.problem import Coefficients, Problem, Trial, Tried, canonical
from modelglue.search.racing import Race, race
from modelglue.search.result import Generation, SearchResult
from modelglue.search.sampler import Cloud, Sampler
from modelglue.search.singles import best_first
from modelglue.search.space import Point, Space

Estimate = Callable[[Coefficients, Trial], float]
"""(candidate, its trial on some items) → its mean on all of them, estimated."""


@dataclass(frozen=True)
class Plan:
    """How an evolution goes about it.

    Attributes:
        trials: candidates in all, those that stood at the start among them.
        sigma: the first step size.
        population: members of a generation; None for 4 + ⌊3 ln dimension⌋.
        level: of the race; None for none.
        stages: see `blocks_at`.
        finalists: of those that were not scored on all items, how many are in the end.
        estimate: of the mean on all items, from some; None for none.
    """

    trials: int
    sigma: float
    population: int | None = None
    level: float | None = None
    stages: int = 1
    finalists: int = 3
    estimate: Estimate | None = None

    def blocks_at(self, progress: float, items: Sequence[int]) -> int:
        """How many blocks, of so many items each, a candidate sees at most.

        The last stage sees all, each one before it half of what the next one sees. Where the rest
        is estimated, half of that will do.

        Args:
            progress: the share of the evolution that is over.
        """
        estimated = self.estimate is not None
        # The first block is the least that a stage can see.
        stages = max(1, min(self.stages, len(items) - estimated))
        stage = min(int(progress * stages), stages - 1)
        wanted = sum(items) * 0.5 ** (stages - 1 - stage + estimated)
        # Groups of items are not torn, so blocks come to such a share only nearly.
        return min(range(1, len(items) + 1), key=lambda blocks: abs(sum(items[:blocks]) - wanted))


@dataclass
class Standing:
    """What is known so far.

    Attributes:
        coefficients, trial: the best candidate of all that were scored on all items.
        asked: items seen by each candidate that was asked for.
        earlier: (trials, items) of a search that this one goes on from, as far as `asked` lacks
            them.
        means: of the candidates of the evolution that were scored on all items.
        partial: (blocks, estimate, candidate) of those that were not, and not stopped either.
        generations: one each.
    """

    coefficients: dict[str, float]
    trial: Trial
    asked: dict[str, int]
    earlier: tuple[int, int] = (0, 0)
    means: list[float] = field(default_factory=list)
    partial: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)

    @classmethod
    def of_singles(cls, singles: Mapping[str, Trial]) -> "Standing":
        """After the models alone."""
        best = best_first(singles)[0]
        asked = {key({name: 1.0}): trial.items for name, trial in singles.items()}
        return cls({best: 1.0}, singles[best], asked)

    @property
    def trials(self) -> int:
        """Candidates that were asked for."""
        return len(self.asked) + self.earlier[0]

    def meet(self, coefficients: Coefficients, trial: Trial) -> None:
        """A candidate that was scored on all items; of equal ones the first stays the best."""
        self.asked[key(coefficients)] = trial.items
        if trial.mean > self.trial.mean:
            self.coefficients, self.trial = canonical(coefficients), trial


def evolve(problem: Problem, space: Space, plan: Plan, start: Point, standing: Standing) -> None:
    """Evolve candidates until the trials are used up, and score the finalists.

    Args:
        space: what is searched.
        start: the middle of the first generation.
        standing: what was scored before; everything that comes is noted there.
    """
    if not space.dimension:
        return
    budget = plan.trials - standing.trials
    sampler = Sampler(Cloud(start, plan.sigma, space.bounds, plan.population), problem.seed)
    done, middle = 0, None
    # One trial is kept for the middle of the last generation, which is no lucky draw.
    while (left := budget - done - (middle is not None)) > 0:
        points = sampler.ask(len(standing.generations))[:left]
        blocks = plan.blocks_at(done / budget, problem.objective.items)
        candidates = [canonical(space.candidate(point)) for point in points]
        race = score_generation(problem, plan, candidates, standing, blocks=blocks)
        note_generation(problem, candidates, race, standing, blocks=blocks, spread=sampler.sigma)
        done += len(points)
        if len(points) == sampler.members:
            middle = sampler.mean if sampler.tell(points, race.estimates) else middle
            sampler = sampler.again() if sampler.ended else sampler
    middles = [] if middle is None or done == budget else [canonical(space.candidate(middle))]
    score_finalists(problem, plan, standing, middles)


def score_generation(
    problem: Problem,
    plan: Plan,
    candidates: Sequence[Coefficients],
    standing: Standing,
    *,
    blocks: int,
) -> Race:
    """Score candidates on so many blocks, those that cannot win on fewer where there is a race."""
    if plan.level is None and blocks == problem.objective.blocks:
        trials = tuple(problem.objective.many(candidates))
        unique = {key(c): trial.items for c, trial in zip(candidates, trials, strict=True)}
        means = tuple(trial.mean for trial in trials)
        return Race(trials, means, (False,) * len(trials), sum(unique.values()))
    return race(
        problem.objective,
        candidates,
        level=plan.level,
        best=standing.trial,
        told=standing.means,
        estimate=plan.estimate,
        most_blocks=blocks,
    )


def note_generation(
    problem: Problem,
    candidates: Sequence[Coefficients],
    race: Race,
    standing: Standing,
    *,
    blocks: int,
    spread: float = 0.0,
) -> None:
    """Take in what came of a generation, and tell who looks on."""
    number, whole = len(standing.generations), blocks == problem.objective.blocks
    tried = [
        Tried(
            canonical(candidate),
            estimate,
            whole=whole and not stopped and trial.scores is not None,
            stopped=stopped,
            failure=trial.failure,
            items=trial.items,
            generation=number,
            member=member,
        )
        for member, (candidate, trial, estimate, stopped) in enumerate(
            zip(candidates, race.trials, race.estimates, race.stopped, strict=True)
        )
    ]
    for one, trial in zip(tried, race.trials, strict=True):
        name = key(one.coefficients)
        standing.asked[name] = max(standing.asked.get(name, 0), trial.items)
        if one.whole:
            standing.means.append(trial.mean)
            standing.meet(one.coefficients, trial)
        elif one.failure is None and not one.stopped:
            standing.partial.append((blocks, one.value, one.coefficients))
    standing.generations.append(
        Generation(
            number=number,
            best=max(race.estimates),
            incumbent=standing.trial.mean,
            spread=spread,
            candidates=len(tried),
            stopped=sum(race.stopped),
            failed=sum(one.failure is not None for one in tried),
            items=race.items,
        )
    )
    problem.tell(tried)


def score_finalists(
    problem: Problem, plan: Plan, standing: Standing, others: Sequence[Coefficients] = ()
) -> None:
    """Score on all items what may be the best: the best by estimate, and these others.

    Estimates from more blocks go before those from fewer, of which the best are the luckier ones.
    """
    order = sorted(standing.partial, key=lambda each: (-each[0], -each[1]))
    by_estimate = {key(candidate): candidate for _, _, candidate in order}
    chosen = [*list(by_estimate.values())[: plan.finalists], *map(canonical, others)]
    unique = list({key(candidate): candidate for candidate in chosen}.values())
    for member, trial in enumerate(problem.objective.many(unique)):
        standing.meet(unique[member], trial)
        problem.tell([Tried.on_all(unique[member], trial, member=member)])


def concluded(strategy: str, standing: Standing) -> SearchResult:
    """The best of all that were scored on all items."""
    return SearchResult(
        strategy,
        standing.coefficients,
        standing.trial.mean,
        steps=(),
        trials=standing.trials,
        generations=tuple(standing.generations),
        items=sum(standing.asked.values()) + standing.earlier[1],
    )


def key(coefficients: Coefficients) -> str:
    """The same text for the same candidate."""
    return json.dumps(canonical(coefficients))
