"""A generation raced: candidates that cannot win are stopped before they have seen every item.

All candidates answer the same blocks of items. After each block every candidate is compared, item
by item, with the best so far; how sure that comparison is accounts for the items still to come and
for the number of looks (`evaluate.statistics`).

What "cannot win" means. CMA-ES moves by rank, and the best third of a generation carries more than
nine tenths of the weight; what is returned in the end must have been scored on all items. So a
candidate is stopped if

1. a test says that it is not the best of its generation, or that it is worse than the incumbent,
2. and it stands outside the best third, so that no rank that counts comes from a few blocks.

Were the second a test too (Heidrich-Meisner & Igel, 2009, race for the better half), the middle of
the field, where neighbours differ least and matter least, would run to the end.

At level 0.1 such a race uses 0.6 of the items and stops one winner in thirty; an evolution by
races, whose candidates come to lie nearer together, uses 0.7 and ends where one without them does
(`benchmarks/simulated_search.py`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelglue.evaluate.scores import Scores, TaskScores, joined
from modelglue.evaluate.statistics import Lead, looks_boundary, paired_lead, shrunken
from modelglue.search.problem import Coefficients, Objective, Trial, canonical


@dataclass(frozen=True)
class Race:
    """What came of a generation, one entry a candidate, in their order.

    Attributes:
        trials: on the items that each saw.
        estimates: of the mean on all items of the race; −∞ for a candidate that failed.
        stopped: whether it was stopped early; False for one that failed.
        items: item evaluations, those of a candidate that came twice counted once.
    """

    trials: tuple[Trial, ...]
    estimates: tuple[float, ...]
    stopped: tuple[bool, ...]
    items: int


def race(
    objective: Objective,
    candidates: Sequence[Coefficients],
    *,
    level: float | None,
    best: Trial | None,
    told: Sequence[float],
    estimate: Callable[[Coefficients, Trial], float] | None = None,
    most_blocks: int | None = None,
) -> Race:
    """Score candidates block by block, and stop those that cannot win.

    Nothing is drawn: the same scores give the same race.

    Args:
        objective: see `Objective`.
        candidates: of one generation.
        level: of the test against the best so far, over all looks: the chance that a candidate
            which is as good on all items is stopped. A winner has several rivals, but seldom one
            as close as that: a third of this share of them is stopped (in simulations). None to
            stop nobody.
        best: the incumbent's trial; compared with as far as it was scored on what the race sees.
        told: means of earlier generations, to which estimates are shrunken.
        estimate: of the mean on *all* items, for a candidate that saw only some; by default the
            lead over the survivors on the items seen, shrunken.
        most_blocks: how many blocks the race is about; None for all.
    """
    unique = {tuple(canonical(candidate).items()): candidate for candidate in candidates}
    blocks = min(most_blocks or objective.blocks, objective.blocks)
    lanes = [_Lane(candidate) for candidate in unique.values()]
    _run(objective, lanes, level, best, blocks)
    estimates = dict(zip(unique, _estimates(lanes, told, estimate, objective, blocks), strict=True))
    by_key = dict(zip(unique, lanes, strict=True))
    keys = [tuple(canonical(candidate).items()) for candidate in candidates]
    return Race(
        trials=tuple(by_key[key].trial for key in keys),
        estimates=tuple(estimates[key] for key in keys),
        stopped=tuple(by_key[key].stopped for key in keys),
        items=sum(lane.items for lane in lanes),
    )


class _Lane:
    """One candidate's way through the blocks.

    Attributes:
        seen: its scores after each block, joined.
        failure: why it could not be scored on; None if it could.
        stopped: whether it was stopped early.
    """

    def __init__(self, candidate: Coefficients) -> None:
        self.candidate = candidate
        self.seen: list[Scores] = []
        self.failure: str | None = None
        self.stopped = False

    def add(self, trial: Trial) -> None:
        """One more block."""
        if trial.scores is None:
            self.failure = trial.failure or "it could not be scored"
        else:
            self.seen.append(joined([*self.seen[-1:], trial.scores]))

    @property
    def runs(self) -> bool:
        """Whether it is to see another block."""
        return not self.stopped and self.failure is None

    @property
    def scores(self) -> Scores:
        """On everything that it saw."""
        return self.seen[-1]

    @property
    def trial(self) -> Trial:
        """The same as a trial."""
        return Trial(self.scores) if self.failure is None else Trial(None, self.failure)

    @property
    def items(self) -> int:
        """How many items it was scored on."""
        return sum(len(task.items) for task in self.scores.tasks) if self.seen else 0


def _run(
    objective: Objective,
    lanes: Sequence[_Lane],
    level: float | None,
    best: Trial | None,
    blocks: int,
) -> None:
    total = sum(objective.items[:blocks])
    shares = tuple(sum(objective.items[: block + 1]) / total for block in range(blocks))
    for block in range(blocks):
        running = [lane for lane in lanes if lane.runs]
        if block % 2:  # to and fro: the first may still be in memory, as the last that was merged
            running.reverse()
        trials = objective.many([lane.candidate for lane in running], block)
        for lane, trial in zip(running, trials, strict=True):
            lane.add(trial)
        if level is not None and block + 1 < blocks:
            _stop(lanes, best, looks_boundary(level, shares[:-1]), shares[block])


def _stop(lanes: Sequence[_Lane], best: Trial | None, boundary: float, seen: float) -> None:
    """Stop those that cannot win."""
    standing = sorted((lane for lane in lanes if lane.runs), key=lambda lane: -lane.scores.mean)
    third = math.ceil(len(lanes) / 3)
    if len(standing) <= third:
        return
    leader = standing[0].scores
    incumbent = None if best is None or best.scores is None else _part(best.scores, leader)
    if incumbent is not None and incumbent.mean > leader.mean:
        leader = incumbent
    for lane in standing[third:]:
        lane.stopped = paired_lead(leader, lane.scores).score(seen) > boundary


def _estimates(
    lanes: Sequence[_Lane],
    told: Sequence[float],
    estimate: Callable[[Coefficients, Trial], float] | None,
    objective: Objective,
    blocks: int,
) -> list[float]:
    """What CMA-ES is told; the stopped never stand above the lowest survivor."""
    whole = blocks == objective.blocks
    survivors = [lane for lane in lanes if lane.runs]
    if estimate is None:
        guessed = _shrunken(lanes, survivors, told)
    else:
        partial = [lane for lane in lanes if lane.stopped or (lane.runs and not whole)]
        guessed = {id(lane): estimate(lane.candidate, lane.trial) for lane in partial}
    final = {id(lane): guessed.get(id(lane), lane.trial.mean) for lane in lanes}
    lowest = min((final[id(lane)] for lane in survivors), default=math.inf)
    return [min(final[id(x)], lowest) if x.stopped else final[id(x)] for x in lanes]


def _shrunken(
    lanes: Sequence[_Lane], survivors: Sequence[_Lane], told: Sequence[float]
) -> dict[int, float]:
    """Estimates by lane for the stopped: the survivors' mean and the lead over it, shrunken.

    Blocks differ in difficulty, so a mean over the first ones does not compare with a mean over
    all; the difference to the survivors on the same items does.
    """
    stopped = [lane for lane in lanes if lane.stopped]
    if not stopped or not survivors:  # all that were not stopped may fail later on
        return {}
    finish = [lane.scores.mean for lane in survivors]
    level = math.fsum(finish) / len(finish)
    leads = [_lead_over(survivors, lane) for lane in stopped]
    seen = [lane.items / survivors[0].items for lane in stopped]
    estimates = shrunken(
        [level + lead.mean for lead in leads],
        [lead.variance * (1 - share) for lead, share in zip(leads, seen, strict=True)],
        others=[*told, *finish],
    )
    return dict(zip(map(id, stopped), estimates, strict=True))


def _lead_over(survivors: Sequence[_Lane], lane: _Lane) -> Lead:
    """The lead of a stopped candidate over the survivors' average on the items that it saw."""
    then = len(lane.seen) - 1
    return paired_lead(lane.scores, _average([survivor.seen[then] for survivor in survivors]))


def _average(several: Sequence[Scores]) -> Scores:
    """The mean of several models' scores of the same items, item by item."""
    tasks = []
    for number, first in enumerate(several[0].tasks):
        columns = [scores.tasks[number].values for scores in several]
        values = tuple(math.fsum(column) / len(several) for column in zip(*columns, strict=True))
        tasks.append(TaskScores(first.task, first.items, values, first.groups))
    return Scores(tuple(tasks))


def _part(scores: Scores, like: Scores) -> Scores | None:
    """The scores on the items of another; None if some of these are missing."""
    known = {task.task: dict(zip(task.items, task.values, strict=True)) for task in scores.tasks}
    if any(set(t.items) - known.get(t.task, {}).keys() for t in like.tasks):
        return None
    return Scores(
        tuple(
            TaskScores(t.task, t.items, tuple(known[t.task][i] for i in t.items), t.groups)
            for t in like.tasks
        )
    )
