"""What a search strategy gives back: what won, and every step that led there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One model's turn: what was tried with it and what came of it.

    Attributes:
        candidate: the model.
        coefficient: the share of the *incumbent* in the best mixture found, `c` in
            c·incumbent + (1 − c)·candidate; None for the model that the search starts from.
        score: the best mean score with the candidate in; −∞ if it could not be scored.
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
        """A JSON object; `from_json` takes it back."""
        return {**vars(self), "score": _finite(self.score)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Step":
        """What `to_json` gave."""
        return cls(**{**value, "score": _lowest(value["score"])})


@dataclass(frozen=True)
class Generation:
    """One generation of an evolution.

    Attributes:
        number: counted from 0.
        best: the best mean of it, estimated where a candidate was stopped early; −∞ if none could
            be scored.
        incumbent: the best mean of a candidate scored on all items, of this or earlier ones, or of
            what the search started with.
        spread: the step size σ with which it was drawn; 0 where there is none.
        candidates: how many it had.
        stopped: of these, how many a race stopped early.
        failed: of these, how many could not be scored.
        items: item evaluations that it took.
    """

    number: int
    best: float
    incumbent: float
    spread: float
    candidates: int
    stopped: int = 0
    failed: int = 0
    items: int = 0

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return {**vars(self), "best": _finite(self.best)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Generation":
        """What `to_json` gave."""
        return cls(**{**value, "best": _lowest(value["best"])})


def _finite(score: float) -> float | None:
    # JSON knows no infinity.
    return score if math.isfinite(score) else None


def _lowest(score: float | None) -> float:
    return -math.inf if score is None else score


@dataclass(frozen=True)
class SearchResult:
    """What won, and every step that led there.

    Attributes:
        coefficients: the winning candidate; of a strategy that only weighs models, weight by
            model name, those kept only, sum 1.
        score: mean score of exactly these coefficients on the search items.
        steps: one a model's turn, for strategies that go model by model.
        trials: candidates that the strategy asked for (its own repeats not counted).
        generations: one a generation, for strategies that evolve.
        items: item evaluations that its candidates took; 0 where it is not counted.
        low, high: the ends of the 95 % interval of that score, as if no other candidate had been
            tried; None where nobody asked.
    """

    strategy: str
    coefficients: dict[str, float]
    score: float
    steps: tuple[Step, ...]
    trials: int
    generations: tuple[Generation, ...] = ()
    items: int = 0
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return {
            **vars(self),
            "steps": [step.to_json() for step in self.steps],
            "generations": [generation.to_json() for generation in self.generations],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SearchResult":
        """What `to_json` gave."""
        return cls(
            **{
                **value,
                "steps": tuple(map(Step.from_json, value["steps"])),
                "generations": tuple(map(Generation.from_json, value["generations"])),
            }
        )
