"""One miniature zoo: searches in its largest family, and report scores of what they find."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from modelglue.evaluate.sandbox import probe
from modelglue.evaluate.sandbox.remembering import Remembering
from modelglue.evaluate.scores import Scores
from modelglue.evaluate.statistics import mean_interval, paired_difference
from modelglue.evaluate.threads import threads_for
from modelglue.journal import Journal, read_json
from modelglue.minizoo.zoo import train_zoo
from modelglue.recipe.config import RecipeConfig, parse_recipe
from modelglue.recipe.family_choice import FamilyChoice
from modelglue.recipe.inputs import open_inputs
from modelglue.recipe.search import search_families
from modelglue.recipe.workers import Families
from modelglue.search.problem import canonical
from modelglue.search.result import SearchResult
from modelglue.yamlfile import read_yaml

TRIALS = 60
EVOLUTION: dict[str, Any] = {"strategy": "evolution", "trials": TRIALS}


class Zoo:
    """A trained zoo and the runs in it; what was done before stands.

    Args:
        folder: where zoos are.
        recipe: which of the zoo's recipes.
    """

    def __init__(self, folder: Path, preset: str, seed: int, *, recipe: str = "glue.yaml") -> None:
        self.path = (folder / f"{preset}-{seed}").resolve()
        self.seed, self._preset, self._recipe = seed, preset, recipe

    @property
    def name(self) -> str:
        """What its figures are filed under."""
        recipe = Path(self._recipe).stem.removeprefix("glue").removeprefix("-")
        return f"{recipe or self._preset}, {self.seed}"

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe as the zoo has it; the zoo is trained if it is not there."""
        train_zoo(self._preset, self.path, seed=self.seed)
        found: dict[str, Any] = read_yaml(self.path / self._recipe)
        return found

    def config(
        self, run: str, strategies: Sequence[Any] = (), merge: Mapping[str, Any] | None = None
    ) -> RecipeConfig:
        """The recipe with other strategies and another method, in a run of its own."""
        search = {"strategies": list(strategies), "seed": self.seed} if strategies else {}
        place = self.path / "runs" / f"search-{Path(self._recipe).stem}" / run.replace(" ", "-")
        recipe = {**self.recipe, "merge": dict(merge or {"method": "linear"}), "search": search}
        return parse_recipe({**recipe, "output": str(place)}, root=self.path)

    def searched(
        self, run: str, strategies: Sequence[Any], *, merge: Mapping[str, Any] | None = None
    ) -> FamilyChoice:
        """What the strategies come to in the largest family."""
        return search_families(self.config(run, strategies, merge)).choices[0]

    @cached_property
    def sandbox(self) -> Remembering:
        """One for all reports: candidates write much the same programs for the same items."""
        return Remembering(probe())

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The largest family."""
        return self.searched("family", ["heuristic_average"]).members

    def climb(self, run: str) -> list[float]:
        """The best score on all search items that a run had after each different candidate."""
        best, seen, climbed = 0.0, set(), []
        with Journal(self.config(run).output / "journal.jsonl") as journal:
            for record in journal:
                if record.get("event") != "trial" or record.get("scope") != "search-1":
                    continue
                if (key := json.dumps(record["coefficients"])) not in seen:
                    seen.add(key)
                    climbed.append(best)
                if record["block"] is None and "mean" in record:
                    best = climbed[-1] = max(best, record["mean"])
        return climbed

    def report(
        self,
        coefficients: Mapping[str, float],
        *,
        merge: Mapping[str, Any] | None = None,
        members: Sequence[str] | None = None,
    ) -> Scores:
        """A candidate's scores on the report items; kept in a journal of their own.

        Args:
            members: the models that it is of; by default the largest family.
        """
        candidate = canonical(coefficients)
        key = json.dumps([candidate, dict(merge or {})])
        with Journal(self.path / "runs" / "search-report.jsonl") as journal:
            for record in journal:
                if record["key"] == key:
                    return Scores.from_json(record["scores"])
            config = self.config("report", merge=merge)
            with open_inputs(config) as inputs, threads_for(0):
                families = Families(config, inputs, self.path / "adapters", config.names)
                family = families.of(members or self.members)
                sandbox = self.sandbox if inputs.sandbox else None
                scores = family.score(candidate, inputs.tasks, "report", sandbox)
            journal.append({"key": key, "scores": scores.to_json()})
        return scores

    def of_role(self, *roles: str) -> list[str]:
        """The zoo's models of these roles."""
        models = read_json(self.path / "zoo.json")["models"]
        return [model["name"] for model in models if model["role"] in roles]

    def standard_error(self, coefficients: Mapping[str, float]) -> float:
        """Of the report average."""
        interval = mean_interval(self.report(coefficients), level=0.6827)
        return (interval.high - interval.low) / 2

    def row(
        self,
        coefficients: Mapping[str, float],
        rival: Scores,
        *,
        merge: Mapping[str, Any] | None = None,
        choice: FamilyChoice | None = None,
        result: SearchResult | None = None,
    ) -> dict[str, Any]:
        """A row of the table."""
        report = self.report(coefficients, merge=merge)
        gap = paired_difference(report, rival)
        verdict = None if choice is None else choice.verdict
        return {
            "report": report.mean,
            "difference": [gap.mean, gap.low, gap.high],
            "search": None if result is None else result.score,
            "trials": None if result is None else result.trials,
            "items": None if result is None else result.items,
            "accepted": None if verdict is None else verdict.accepted,
            "coefficients": dict(coefficients),
        }
