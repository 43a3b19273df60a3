"""Stages that choose: families, the best merge of each, the experts. They see search items only."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.evaluate.scores import Scores
from modelglue.evaluate.task import SplitName, Task
from modelglue.merge.engine.stream import execute
from modelglue.mixture.mix import mix
from modelglue.recipe.estimate import trials_at_most
from modelglue.recipe.inputs import refuse_changed
from modelglue.recipe.session import Session
from modelglue.search.problem import Problem, SearchResult, search
from modelglue.search.trials import JournalledObjective
from modelglue.zoo.cluster import Clustering, cluster


@dataclass(frozen=True)
class FamilyChoice:
    """What the searches in one family came to.

    Attributes:
        number: of the family, counted from 1, the largest first.
        members: the family's models, in the recipe's order.
        tasks: those whose mean was the score.
        singles: each model's own scores on the search items of these tasks.
        searches: one result a strategy; empty for a family of one.
        winner: the strategy whose result is kept (the earlier one, if two are equally good);
            None for a family of one.
        scores: the chosen model's, likewise.
        coefficients: the chosen model.
    """

    number: int
    members: tuple[str, ...]
    tasks: tuple[str, ...]
    singles: dict[str, Scores]
    searches: tuple[SearchResult, ...]
    winner: str | None
    scores: Scores
    coefficients: dict[str, float]

    @property
    def label(self) -> str:
        """What the chosen model is called: a single one by its name, a merge after its family."""
        alone = len(self.coefficients) == 1
        return next(iter(self.coefficients)) if alone else f"merged-{self.number}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "number": self.number,
            "members": list(self.members),
            "tasks": list(self.tasks),
            "singles": {name: scores.to_json() for name, scores in self.singles.items()},
            "searches": [result.to_json() for result in self.searches],
            "winner": self.winner,
            "scores": self.scores.to_json(),
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
            searches=tuple(map(SearchResult.from_json, value["searches"])),
            winner=value["winner"],
            scores=Scores.from_json(value["scores"]),
            coefficients=value["coefficients"],
        )


def find_families(session: Session) -> Clustering:
    """Group the zoo; remember what the inputs were, and refuse to go on if they changed."""
    models = session.inputs.models

    def work(folder: Path) -> dict[str, Any]:
        session.tell("cluster", f"comparing {len(models)} models")
        clustering = cluster(
            list(models.values()),
            names=list(models),
            threshold=session.config.threshold,
            fingerprint=True,
        )
        return {
            "clustering": clustering.to_json(),
            "fingerprints": dict(clustering.similarity.fingerprints),
            "tokenizers": session.inputs.companion_digests(),
            "tasks": session.inputs.task_digests(),
        }

    stood = session.run.done("cluster")
    result = session.run.stage("cluster", work)
    if stood:
        now = {name: model.fingerprint() for name, model in models.items()}
        refuse_changed(result["fingerprints"], now, "models")
        refuse_changed(
            result["tokenizers"], session.inputs.companion_digests(), "tokenizers or templates"
        )
        refuse_changed(result["tasks"], session.inputs.task_digests(), "tasks")
    return Clustering.from_json(result["clustering"])


def choose_in_family(session: Session, number: int, members: tuple[str, ...]) -> FamilyChoice:
    """Run every strategy in one family; every trial is journalled, none is made twice."""
    tasks = tuple(task.name for task in session.inputs.tasks)
    return _choose(session, f"search-{number}", number, members, tasks)


def choose_for_tasks(
    session: Session, choice: FamilyChoice, leads: tuple[str, ...]
) -> FamilyChoice:
    """The family's best merge for the tasks that the router will send to it, and no others.

    A model that earned its weight at a task which another expert answers is dead weight here, and
    dilutes the rest. The same strategies run again, on the same journalled trials and those that
    they lack, with the mean over these tasks as their score. (The paper has no such step.)

    Args:
        leads: the tasks; where they are all tasks, or none, or the family has one model, the
            choice stays as it is.
    """
    if len(choice.members) == 1 or not leads or set(leads) == set(choice.tasks):
        return choice
    number = choice.number
    return _choose(
        session,
        f"refine-{number}",
        number,
        choice.members,
        leads,
        earlier=(f"search-{number}",),
    )


def _choose(
    session: Session,
    stage: str,
    number: int,
    members: tuple[str, ...],
    names: tuple[str, ...],
    *,
    earlier: tuple[str, ...] = (),
) -> FamilyChoice:
    tasks = [task for task in session.inputs.tasks if task.name in names]

    def work(folder: Path) -> dict[str, Any]:
        family, formula = session.family(members), session.config.merge
        total = trials_at_most(len(members), session.config.strategies)
        best = float("-inf")

        def told(candidate: Mapping[str, float], scores: Scores) -> None:
            nonlocal best
            best = max(best, scores.mean)
            session.tell(stage, _recipe_of(candidate), len(objective), total, best)

        objective = JournalledObjective(
            lambda candidate: family.score(candidate, tasks, "search", session.inputs.sandbox),
            session.run.journal,
            scope=stage,
            earlier=earlier,
            tasks=names,
            on_trial=told,
        )
        problem = Problem(
            members,
            lambda candidate: objective(formula.canonical(candidate)),
            family.similarity,
            family.most,
        )
        singles = {name: objective({name: 1.0}) for name in members}
        results: tuple[SearchResult, ...] = ()
        winner, coefficients = None, {members[0]: 1.0}
        if len(members) > 1:
            results = tuple(search(strategy, problem) for strategy in session.config.strategies)
            best_result = max(results, key=lambda result: result.score)
            winner = best_result.strategy
            coefficients = formula.canonical(best_result.coefficients)
        return FamilyChoice(
            number, members, names, singles, results, winner, objective(coefficients), coefficients
        ).to_json()

    return FamilyChoice.from_json(session.run.stage(stage, work))


def write_merge(session: Session, choice: FamilyChoice) -> Path:
    """The chosen model of a family as a checkpoint; a single model is used where it lies."""
    if len(choice.coefficients) == 1:
        return session.folder_of(*choice.coefficients)
    stage = f"merge-{choice.number}"

    def work(folder: Path) -> dict[str, Any]:
        session.tell(stage, _recipe_of(choice.coefficients))
        execute(session.family(choice.members).plan(choice.coefficients), folder / "model")
        return {"method": session.config.merge.method, "coefficients": choice.coefficients}

    session.run.stage(stage, work)
    return session.run.folder(stage) / "model"


@dataclass(frozen=True)
class Team:
    """Who stands behind the router, and what each is there for.

    Attributes:
        leads: expert → the tasks at which it is the best on the search items; a mixture has at
            least two experts, a team of one is that model alone.
    """

    leads: dict[str, tuple[str, ...]]


def choose_team(candidates: Mapping[str, Scores], asked_for: Iterable[str] = ()) -> Team:
    """For each task the candidate that is best on its search items; who leads none is left out.

    Equal candidates: the one with the better mean over all tasks, then the earlier one.

    Args:
        candidates: scores on the search items.
        asked_for: candidates that come in whatever their scores, as the user gave them prompts.
    """
    tasks = next(iter(candidates.values())).by_task()
    best = {
        task: max(candidates, key=lambda n: (candidates[n][task].mean, candidates[n].mean))
        for task in tasks
    }
    wanted = set(best.values()) | set(asked_for)
    return Team(
        {
            name: tuple(task for task, leader in best.items() if leader == name)
            for name in candidates
            if name in wanted
        }
    )


@dataclass(frozen=True)
class Candidate:
    """A model that may become an expert.

    Attributes:
        members: the models of the zoo whose router prompts are its own: a family, or one model.
        folder: the checkpoint.
        scores: its own on the search items.
    """

    members: tuple[str, ...]
    folder: Path
    scores: Scores


def write_mixture(
    session: Session, stage: str, team: Team, candidates: Mapping[str, Candidate]
) -> dict[str, Any]:
    """A bundle of the team, its router initialised from prompts; nothing is trained."""

    def work(folder: Path) -> dict[str, Any]:
        session.tell(stage, f"a router over {', '.join(team.leads)}")
        summary = mix(
            {name: candidates[name].folder for name in team.leads},
            {
                name: prompts_for(session, candidates[name].members, tasks)
                for name, tasks in team.leads.items()
            },
            folder / "bundle",
            reasons={name: _why(tasks) for name, tasks in team.leads.items()},
            device=session.config.device,
        )
        return {
            "leads": {name: list(tasks) for name, tasks in team.leads.items()},
            "encoder": summary.encoder,
            "condition": summary.condition,
            "validation": summary.validation and summary.validation.accuracy,
        }

    return session.run.stage(stage, work)


def prompts_for(session: Session, members: Iterable[str], leads: Iterable[str]) -> list[str]:
    """What the router is to send to an expert: the user's prompts, else the tasks' search items.

    Args:
        members: the models that the expert stands for.
        leads: the tasks that are its own.
    """
    given = given_prompts(session, members)
    if given:
        return given
    tasks = {task.name: task for task in session.inputs.tasks}
    return [prompt for name in leads for prompt in prompts_of(tasks[name], "search")]


def given_prompts(session: Session, members: Iterable[str]) -> list[str]:
    """The router prompts that the user gave for any of these models."""
    own = set(members)
    entries = [entry for entry in session.config.models if entry.name in own]
    return [prompt for entry in entries for prompt in entry.prompts or ()]


def prompts_of(task: Task, split: SplitName) -> list[str]:
    """What the router sees of each item of a split."""
    return [
        str(item.record.get("prompt", item.record.get("text", ""))) for item in task.items(split)
    ]


def _recipe_of(coefficients: Mapping[str, float]) -> str:
    return " + ".join(f"{weight:.3g}·{name}" for name, weight in coefficients.items())


def _why(tasks: Iterable[str]) -> str:
    led = ", ".join(tasks)
    return f"best on the search items of {led}" if led else "prompts were given for it"
