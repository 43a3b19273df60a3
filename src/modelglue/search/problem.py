"""What a search strategy is given, and what it gives back. All callables, never a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from modelglue.evaluate.scores import Scores
from modelglue.registry import Registry

Coefficients = Mapping[str, float]
"""A candidate: weight by model name; a model that is not in it has weight 0."""


def canonical(coefficients: Coefficients) -> dict[str, float]:
    """One spelling for each candidate: names sorted, rounding noise and absent models removed.

    >>> canonical({"b": 0.1 + 0.2, "a": 0.7, "c": 0.0})
    {'a': 0.7, 'b': 0.3}
    """
    rounded = {name: round(weight, 12) for name, weight in sorted(coefficients.items())}
    return {name: weight for name, weight in rounded.items() if weight}


@dataclass(frozen=True)
class Problem:
    """Which of `names` to merge, and with what coefficients.

    Attributes:
        names: the models of one family, in the order in which the user listed them.
        objective: scores of a candidate on the search items, higher is better. Pure: the same
            coefficients give the same scores.
        similarity: cosine similarity between a candidate and one model, for the strategies that
            order models by it.
        most: how many models a candidate may have; None for any number.
    """

    names: tuple[str, ...]
    objective: Callable[[Coefficients], Scores]
    similarity: Callable[[Coefficients, str], float]
    most: int | None = None


@dataclass(frozen=True)
class Step:
    """One model's turn: what was tried with it and what came of it.

    Attributes:
        candidate: the model.
        coefficient: the share of the *incumbent* in the best mixture found, `c` in
            c·incumbent + (1 − c)·candidate; None for the model that the search starts from.
        score: the best mean score with the candidate in.
        incumbent: the score before.
        accepted: whether the candidate was kept.
        reason: the same in words.
    """

    candidate: str
    coefficient: float | None
    score: float
    incumbent: float
    accepted: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dict(vars(self))


@dataclass(frozen=True)
class SearchResult:
    """What won, and every step that led there.

    Attributes:
        coefficients: weight by model name, those kept only, sum 1.
        score: mean score of exactly these coefficients on the search items.
        trials: candidates that the strategy asked for (its own repeats not counted).
    """

    strategy: str
    coefficients: dict[str, float]
    score: float
    steps: tuple[Step, ...]
    trials: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return {**vars(self), "steps": [step.to_json() for step in self.steps]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SearchResult":
        """What `to_json` gave."""
        return cls(**{**value, "steps": tuple(Step(**step) for step in value["steps"])})


class Strategy(Protocol):
    """A way to search; registered in `STRATEGIES` by the file that holds it."""

    def __call__(self, problem: Problem) -> SearchResult:
        """Search until done."""
        ...


STRATEGIES: Registry[Strategy] = Registry("search strategy", "modelglue.search.strategies")


def search(strategy: str, problem: Problem) -> SearchResult:
    """Run the strategy of that name.

    Raises:
        UnknownName: there is no such strategy.
    """
    return STRATEGIES[strategy](problem)
