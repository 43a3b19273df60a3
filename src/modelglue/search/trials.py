"""Trials that are written down at once and never made twice."""

import json
from collections.abc import Callable, Collection

from modelglue.evaluate.scores import Scores
from modelglue.journal import Journal
from modelglue.search.problem import Coefficients, canonical


class JournalledObjective:
    """An objective that looks into the journal first, and writes every new trial there.

    A strategy is deterministic given its scores, so a killed search needs no saved state: run it
    again, and it walks through the journalled trials to where it stopped.

    Args:
        scope: what these trials are filed under.
        earlier: scopes whose trials serve too, as far as they have all of `tasks`.
        tasks: what a candidate is scored at; None for whatever the objective gives.
        on_trial: told of every trial, also of one that stood already.

    Attributes:
        evaluated: trials made by this process.
    """

    def __init__(
        self,
        objective: Callable[[Coefficients], Scores],
        journal: Journal,
        *,
        scope: str,
        earlier: Collection[str] = (),
        tasks: Collection[str] | None = None,
        on_trial: Callable[[Coefficients, Scores], None] | None = None,
    ) -> None:
        self._objective = objective
        self._journal = journal
        self._scope = scope
        self._on_trial = on_trial
        self.evaluated = 0
        self._known = {
            json.dumps(record["coefficients"]): _at(tasks, Scores.from_json(record["scores"]))
            for record in journal
            if record.get("event") == "trial" and record.get("scope") in (scope, *earlier)
        }

    def __call__(self, coefficients: Coefficients) -> Scores:
        """The candidate's scores, evaluated only if they do not stand yet."""
        candidate = canonical(coefficients)
        key = json.dumps(candidate)
        if key not in self._known:
            scores = self._objective(candidate)
            self._journal.append(
                {
                    "event": "trial",
                    "scope": self._scope,
                    "coefficients": candidate,
                    "mean": scores.mean,
                    "scores": scores.to_json(),
                }
            )
            self._known[key] = scores
            self.evaluated += 1
        if self._on_trial is not None:
            self._on_trial(candidate, self._known[key])
        return self._known[key]

    def __len__(self) -> int:
        """Different trials that stand, of this process and earlier ones."""
        return len(self._known)


def _at(tasks: Collection[str] | None, scores: Scores) -> Scores:
    return scores if tasks is None else Scores(tuple(scores[task] for task in tasks))
