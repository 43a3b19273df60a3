"""What a search strategy is given. All callables, never a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelglue.evaluate.scores import Scores
from modelglue.registry import Registry
from modelglue.search.knobs import WEIGHT, Knob
from modelglue.search.result import SearchResult

ON = ("on", True)
"""Of an option that is on or off: the word, and what YAML makes of it."""

Coefficients = Mapping[str, float]
"""A candidate: a number by the name of its knob; a model that has none is left out."""


def canonical(coefficients: Coefficients) -> dict[str, float]:
    """One spelling for each candidate: names sorted, rounding noise and absent models removed.

    >>> canonical({"b": 0.1 + 0.2, "a": 0.7, "c": 0.0})
    {'a': 0.7, 'b': 0.3}
    """
    rounded = {name: round(number, 12) + 0.0 for name, number in sorted(coefficients.items())}
    return {name: n for name, n in rounded.items() if n or Knob.parse(name) != Knob(name)}


def models_of(coefficients: Coefficients) -> tuple[str, ...]:
    """The models that a candidate has a weight or a layer of, in the order of their first knob."""
    knobs = [Knob.parse(name) for name in coefficients]
    placed = [k.model for k in knobs if k.parameter == WEIGHT or k.parameter.startswith("place ")]
    return tuple(dict.fromkeys(placed))


@dataclass(frozen=True)
class Trial:
    """What came of evaluating a candidate.

    Attributes:
        scores: on the items that were asked for; None if it failed.
        failure: why it could not be scored (a merge that holds NaN, say); None if it was.
    """

    scores: Scores | None
    failure: str | None = None

    @property
    def mean(self) -> float:
        """The mean over the tasks; of a failed one −∞, which is no score of 0."""
        return -math.inf if self.scores is None else self.scores.mean

    @property
    def items(self) -> int:
        """On how many items it was scored."""
        return 0 if self.scores is None else sum(len(task.items) for task in self.scores.tasks)


class Objective(Protocol):
    """Scores of candidates on the search items, higher is better.

    Pure: the same candidate has the same scores, whoever asks, in whatever order.

    Attributes:
        blocks: into how many blocks the items are cut, each with a share of every task's that is
            about the same, drawn at random; whoever races compares candidates block by block.
        items: the number of items of each block.
    """

    @property
    def blocks(self) -> int:
        """See above."""
        ...

    @property
    def items(self) -> tuple[int, ...]:
        """See above."""
        ...

    def __call__(self, coefficients: Coefficients) -> Trial:
        """One candidate on all items."""
        ...

    def many(self, candidates: Sequence[Coefficients], block: int | None = None) -> list[Trial]:
        """Several candidates, side by side where there is more than one worker.

        Args:
            candidates: what to score.
            block: which block of the items; None for all.

        Returns:
            One trial a candidate, in their order.
        """
        ...


@dataclass(frozen=True)
class Dial:
    """A parameter of the merge method that a search may turn beside the weights.

    Attributes:
        name: of the parameter.
        low, high: its range, both ends allowed.
        start: where a search begins.
        per_model: whether each model has its own.
    """

    name: str
    low: float
    high: float
    start: float
    per_model: bool


@dataclass(frozen=True)
class Dials:
    """What a merge method lets a search turn.

    Attributes:
        weighted: whether models have weights.
        normalised: whether only the ratios of the weights matter, so that they may sum to 1.
        weight: where the weights of an even mixture begin, if they are not normalised; None for
            1 / n.
        others: parameters beside the weights.
        groups: labels of groups of tensors that have numbers of their own; () for none.
        layers: layers of each model, for strategies that reorder them.
        scales: whether what enters a layer can be scaled as well.
        idle: models whose weight changes nothing, as they are what the others differ from.
    """

    weighted: bool = True
    normalised: bool = True
    weight: float | None = None
    others: tuple[Dial, ...] = ()
    groups: tuple[str, ...] = ()
    layers: int = 0
    scales: bool = True
    idle: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tried:
    """A candidate as the search judged it, for whoever looks on (a study, a progress bar).

    Attributes:
        value: its mean on all items; an estimate of it where it was not scored on all.
        whole: whether it was scored on all items.
        stopped: whether a race stopped it early.
        failure: why it could not be scored; None if it was.
        items: on how many items it was scored.
        generation: counted from 0; None for what belongs to none (a single model, a finalist).
        member: its place in the generation, or among those that were asked for with it.
    """

    coefficients: dict[str, float]
    value: float
    whole: bool = True
    stopped: bool = False
    failure: str | None = None
    items: int = 0
    generation: int | None = None
    member: int = 0

    @classmethod
    def on_all(
        cls,
        coefficients: Coefficients,
        trial: Trial,
        *,
        generation: int | None = None,
        member: int = 0,
    ) -> "Tried":
        """A candidate that was scored on all items."""
        return cls(
            canonical(coefficients),
            trial.mean,
            whole=trial.scores is not None,
            failure=trial.failure,
            items=trial.items,
            generation=generation,
            member=member,
        )


def silent(tried: "Sequence[Tried]") -> None:
    """A listener that does nothing."""


@dataclass(frozen=True)
class Problem:
    """Which of `names` to merge, and with what coefficients.

    Attributes:
        names: the models of one family, in the order in which the user listed them.
        objective: see there.
        similarity: cosine similarity between a candidate and one model, for the strategies that
            order models by it.
        most: how many models a candidate may have; None for any number.
        dials: what the merge method lets a search turn.
        options: of the strategy, by name, checked (see `Option`); defaults hold for the rest.
        seed: of everything that is drawn.
        results: what strategies that ran before came to, by name, for those that start from one.
        tell: told of candidates as soon as they are judged, those of a generation together; of all
            of them again when a killed search is run again.
    """

    names: tuple[str, ...]
    objective: Objective
    similarity: Callable[[Coefficients, str], float]
    most: int | None = None
    dials: Dials = field(default_factory=Dials)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    results: Mapping[str, SearchResult] = field(default_factory=dict)
    tell: Callable[[Sequence[Tried]], None] = silent


@dataclass(frozen=True)
class Option:
    """An option of a strategy, as a recipe may set it.

    Attributes:
        sort: `integer`, `number`, `choice`, `text`, or `strategy` (the name of another one).
        default: what holds when nothing is given; None where it may be left out.
        meaning: one line for messages and documentation.
        low, high: the range of a number, both ends allowed.
        below: what a number must stay under, in place of `high`.
        choices: the words that a `choice` knows.
    """

    sort: str
    default: Any
    meaning: str
    low: float | None = None
    high: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()


class Strategy(Protocol):
    """A way to search; registered in `STRATEGIES` by the file that holds it."""

    def __call__(self, problem: Problem) -> SearchResult:
        """Search until done."""
        ...


STRATEGIES: Registry[Strategy] = Registry("search strategy", "modelglue.search.strategies")


def takes(options: Mapping[str, Option]) -> Callable[[Strategy], Strategy]:
    """Say which options a strategy takes; `options_of` finds them."""

    def carry(strategy: Strategy) -> Strategy:
        strategy.options = options  # type: ignore[attr-defined]
        return strategy

    return carry


def options_of(strategy: str) -> Mapping[str, Option]:
    """The options that a strategy takes: what its function carries as `options`."""
    found: Mapping[str, Option] = getattr(STRATEGIES[strategy], "options", {})
    return found


def completed(strategy: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the strategy's defaults for those that are not given."""
    given = {name: value for name, value in options.items() if value is not None}
    return {name: option.default for name, option in options_of(strategy).items()} | given


def search(strategy: str, problem: Problem) -> SearchResult:
    """Run the strategy of that name.

    Raises:
        UnknownName: there is no such strategy.
    """
    return STRATEGIES[strategy](problem)
