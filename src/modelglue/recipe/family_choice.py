"""What the searches in one family came to, as it is kept and reported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelglue.evaluate.scores import Scores
from modelglue.search.accept import Verdict
from modelglue.search.knobs import is_plain
from modelglue.search.result import SearchResult


@dataclass(frozen=True)
class FamilyChoice:
    """What the searches in one family came to.

    Attributes:
        number: of the family, counted from 1, the largest first.
        members: the family's models, in the recipe's order.
        tasks: those whose mean was the score.
        singles: each model's own scores on all search items of these tasks.
        failed: what could not be scored, with the reason: models, merges that were found, the base.
            None of these can be chosen.
        searches: one result a strategy; empty for a family of one.
        found: the strategy with the best result that can be scored (the earlier one, if two are
            equally good); None for a family of one.
        verdict: of the test that this result was put to; None if there was none, as it was a
            single model, or no items are set aside.
        scores: the chosen model's, on all search items of these tasks.
        proposing: the same on those alone that the strategies saw.
        coefficients: the chosen model.
    """

    number: int
    members: tuple[str, ...]
    tasks: tuple[str, ...]
    singles: dict[str, Scores]
    failed: dict[str, str]
    searches: tuple[SearchResult, ...]
    found: str | None
    verdict: Verdict | None
    scores: Scores
    proposing: Scores
    coefficients: dict[str, float]

    @property
    def winner(self) -> str | None:
        """The strategy whose result is kept; None where none is."""
        return None if self.verdict is not None and not self.verdict.accepted else self.found

    @property
    def single(self) -> str | None:
        """The chosen model where it is one of the zoo; None where it is a merge."""
        return single_of(self.coefficients)

    @property
    def label(self) -> str:
        """What the chosen model is called: a single one by its name, a merge after its family."""
        return self.single or f"merged-{self.number}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "number": self.number,
            "members": list(self.members),
            "tasks": list(self.tasks),
            "singles": {name: scores.to_json() for name, scores in self.singles.items()},
            "failed": self.failed,
            "searches": [result.to_json() for result in self.searches],
            "found": self.found,
            "verdict": self.verdict and self.verdict.to_json(),
            "scores": self.scores.to_json(),
            "proposing": self.proposing.to_json(),
            "coefficients": self.coefficients,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "FamilyChoice":
        """What `to_json` gave."""
        return cls(
            number=value["number"],
            members=tuple(value["members"]),
            tasks=tuple(value["tasks"]),
            singles={name: Scores.from_json(s) for name, s in value["singles"].items()},
            failed=value["failed"],
            searches=tuple(map(SearchResult.from_json, value["searches"])),
            found=value["found"],
            verdict=value["verdict"] and Verdict.from_json(value["verdict"]),
            scores=Scores.from_json(value["scores"]),
            proposing=Scores.from_json(value["proposing"]),
            coefficients=value["coefficients"],
        )


def single_of(coefficients: Mapping[str, float]) -> str | None:
    """The one model that a candidate, in its one spelling, is; None for a merge."""
    (name, number), *others = coefficients.items()
    return name if not others and number == 1 and is_plain(name) else None


def recipe_of(coefficients: Mapping[str, float]) -> str:
    """A candidate in a line."""
    return " + ".join(f"{weight:.3g}·{name}" for name, weight in coefficients.items())
