"""The last stage: contestants scored on the report items, once, after every choice stands."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.journal import read_json
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.inspect_routes import inspect_routes
from modelglue.recipe.choose import prompts_of
from modelglue.recipe.session import Session

Kind = Literal["single", "uniform", "heuristic", "mixture", "glued"]


@dataclass(frozen=True)
class Contestant:
    """A row of the final table.

    Attributes:
        models: what is held in memory to make it; for a merge, the group it is made in.
        coefficients: the merge; None for a mixture.
        bundle: the stage that wrote the mixture; None for a merge.
    """

    name: str
    kind: Kind
    models: tuple[str, ...] = ()
    coefficients: Mapping[str, float] | None = None
    bundle: str | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """The same for contestants that are the same model; those are scored once."""
        if self.coefficients is not None:
            return json.dumps(dict(sorted(self.coefficients.items())))
        return f"bundle {self.bundle}"


@dataclass(frozen=True)
class Result:
    """A contestant's report scores and what it costs to run, in parameters."""

    contestant: Contestant
    scores: Scores
    stored: int
    active: int


def hold(session: Session, contestants: Iterable[Contestant]) -> list[Result]:
    """Score every contestant on the report items.

    Every (contestant, task) pair is journalled as soon as it stands, so a killed run repeats at
    most one of them.
    """
    entrants = list(contestants)
    total = len({entrant.key for entrant in entrants}) * len(session.inputs.tasks)

    def work(folder: Any) -> dict[str, Any]:
        standing: dict[tuple[str, str], TaskScores] = {
            (record["contestant"], record["task"]): TaskScores.from_json(record["scores"])
            for record in session.run.journal
            if record.get("event") == "report"
        }
        for entrant in sorted(entrants, key=lambda e: (e.bundle is not None, e.models)):
            for task in session.inputs.tasks:
                place = (entrant.key, task.name)
                if place not in standing:
                    session.tell("report", f"{entrant.name}: {task.name}", len(standing), total)
                    model = _model(session, entrant)
                    scores = task.evaluate(model, "report", sandbox=session.inputs.sandbox)
                    session.run.journal.append(
                        {
                            "event": "report",
                            "contestant": entrant.key,
                            "task": task.name,
                            "scores": scores.to_json(),
                        }
                    )
                    standing[place] = scores
        return {
            "results": [
                {
                    "name": entrant.name,
                    "scores": Scores(
                        tuple(standing[entrant.key, task.name] for task in session.inputs.tasks)
                    ).to_json(),
                    **_cost(session, entrant),
                }
                for entrant in entrants
            ]
        }

    manifest = session.run.stage("report", work)
    return [
        Result(entrant, Scores.from_json(row["scores"]), row["stored"], row["active"])
        for entrant, row in zip(entrants, manifest["results"], strict=True)
    ]


def best_single(results: Iterable[Result]) -> Result:
    """The single model with the best report mean: the hardest one to beat, known afterwards."""
    return max(
        (result for result in results if result.contestant.kind == "single"),
        key=lambda result: result.scores.mean,
    )


def oracle(results: Iterable[Result]) -> Result:
    """For each task the single model that is best at it on the report items themselves."""
    singles = [result for result in results if result.contestant.kind == "single"]
    tasks = [task.task for task in singles[0].scores.tasks]
    leaders = {task: max(singles, key=lambda r: r.scores[task].mean) for task in tasks}
    chosen = {leader.contestant.name: leader for leader in leaders.values()}
    names = ", ".join(f"{task}: {leaders[task].contestant.name}" for task in tasks)
    return Result(
        replace(singles[0].contestant, name="per-task oracle", note=names),
        Scores(tuple(leaders[task].scores[task] for task in tasks)),
        stored=sum(leader.stored for leader in chosen.values()),
        active=max(leader.active for leader in chosen.values()),
    )


def count_routes(session: Session, stage: str) -> dict[str, Any]:
    """How many report items of each task go to each expert of a mixture, for the most part."""

    def work(folder: Any) -> dict[str, Any]:
        experts = list(read_json(session.run.folder(stage) / "manifest.json")["leads"])
        mixture = session.mixture_folder(stage)
        counts = []
        for task in session.inputs.tasks:
            routes = inspect_routes(
                mixture,
                prompts_of(task, "report"),
                device=session.config.device,
                gpus=session.config.search.gpus_per_model,
            )
            chosen = [route.expert for route in routes]
            counts.append([chosen.count(name) for name in experts])
        return {"experts": experts, "counts": counts}

    return session.run.stage("routes", work)


def _model(session: Session, entrant: Contestant) -> Any:
    if entrant.bundle is not None:
        return session.mixture(entrant.bundle)
    return session.family(entrant.models).model(dict(entrant.coefficients or {}))


def _cost(session: Session, entrant: Contestant) -> dict[str, int]:
    if entrant.bundle is not None:
        mixture = session.mixture(entrant.bundle)
        if isinstance(mixture, Bundle):
            return {"stored": mixture.parameters_stored, "active": mixture.parameters_active}
        told = read_json(session.run.folder(entrant.bundle) / "manifest.json")
        return {"stored": told["stored"], "active": told["active"]}
    size = session.inputs.models[entrant.models[0]].parameters
    return {"stored": size, "active": size}
