"""One family's best merge: searches propose it, and items that no search has seen accept it."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelglue.errors import EvaluationError
from modelglue.evaluate.scores import Scores, joined
from modelglue.evaluate.task import Task
from modelglue.merge.engine.stream import execute
from modelglue.recipe.division import Division
from modelglue.recipe.estimate import trials_at_most
from modelglue.recipe.session import Session
from modelglue.recipe.workers import ACCEPT, blocks_of, parts_of
from modelglue.search.accept import Verdict, judge
from modelglue.search.executors import Executor, Job
from modelglue.search.executors.only import Only
from modelglue.search.knobs import is_plain
from modelglue.search.problem import Problem, Trial, search
from modelglue.search.result import SearchResult
from modelglue.search.trials import JournalledObjective


@dataclass(frozen=True)
class FamilyChoice:
    """What the searches in one family came to.

    Attributes:
        number: of the family, counted from 1, the largest first.
        members: the family's models, in the recipe's order.
        tasks: those whose mean was the score.
        singles: each model's own scores on all search items of these tasks.
        failed: models that could not be scored, with the reason; they cannot be chosen.
        searches: one result a strategy; empty for a family of one.
        found: the strategy with the best result (the earlier one, if two are equally good); None
            for a family of one.
        verdict: of the test that the best result was put to; None if there was none, as it was a
            single model, or no items are set aside.
        scores: the chosen model's, on all search items of these tasks.
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
    coefficients: dict[str, float]

    @property
    def winner(self) -> str | None:
        """The strategy whose result is kept; None where none is."""
        return None if self.verdict is not None and not self.verdict.accepted else self.found

    @property
    def single(self) -> str | None:
        """The chosen model where it is one of the zoo; None where it is a merge."""
        return _single(self.coefficients)

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
            coefficients=value["coefficients"],
        )


def _single(coefficients: Mapping[str, float]) -> str | None:
    """The one model that a candidate, in its one spelling, is; None for a merge."""
    (name, number), *others = coefficients.items()
    return name if not others and number == 1 and is_plain(name) else None


def looks_of(families: Sequence[tuple[str, ...]]) -> int:
    """How many merges may be put to the test: one a family, two if it may be searched once more."""
    searched = sum(len(members) > 1 for members in families)
    return searched * (2 if len(families) > 1 else 1)


def choose_in_family(
    session: Session, number: int, members: tuple[str, ...], *, looks: int
) -> FamilyChoice:
    """Run every strategy in one family; every trial is journalled, none is made twice."""
    tasks = tuple(task.name for task in session.inputs.tasks)
    return _choose(session, f"search-{number}", number, members, tasks, looks=looks)


def choose_for_tasks(
    session: Session, choice: FamilyChoice, leads: tuple[str, ...], *, looks: int
) -> FamilyChoice:
    """The family's best merge for the tasks that the router will send to it, and no others.

    A model that earned its weight at a task which another expert answers is dead weight here, and
    dilutes the rest. The same strategies run again, on the same journalled trials and those that
    they lack, with the mean over these tasks as their score. Where what they find is not accepted,
    the better of the choice that stands and the best single model at these tasks is kept. (The
    paper has no such step.)

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
        looks=looks,
        earlier=(f"search-{number}",),
        standing=choice.coefficients,
    )


def _choose(
    session: Session,
    stage: str,
    number: int,
    members: tuple[str, ...],
    names: tuple[str, ...],
    *,
    looks: int,
    earlier: tuple[str, ...] = (),
    standing: Mapping[str, float] | None = None,
) -> FamilyChoice:
    def work(folder: Path) -> dict[str, Any]:
        tasks = [task for task in session.inputs.tasks if task.name in names]
        division = session.inputs.division.of(names)
        blocks = blocks_of(tasks, division.propose, session.config.search.blocks)
        parts = {**parts_of(tasks, division.propose, blocks), ACCEPT: division.accept}
        with closing(session.executor(members, tasks, parts)) as executor:
            told = _Told(session, stage, len(members))
            propose = JournalledObjective(
                executor,
                session.run.journal,
                scope=stage,
                items=blocks,
                earlier=earlier,
                tasks=names,
                on_trial=told,
            )
            told.trials = propose
            accept = None
            if division.accept:
                accept = _accepting(session, executor, stage, tasks, division, earlier)
            family = _Search(
                session, stage, number, members, names, propose, accept, looks, standing
            )
            return family.run().to_json()

    return FamilyChoice.from_json(session.run.stage(stage, work))


def _accepting(
    session: Session,
    executor: Executor,
    stage: str,
    tasks: Sequence[Task],
    division: Division,
    earlier: tuple[str, ...],
) -> JournalledObjective:
    """The objective of the items that accept; its trials stand under a scope of their own."""
    return JournalledObjective(
        Only(executor, ACCEPT),
        session.run.journal,
        scope=f"{stage} accept",
        items=blocks_of(tasks, division.accept, 1),
        earlier=tuple(f"{scope} accept" for scope in earlier),
        tasks=tuple(task.name for task in tasks),
    )


class _Told:
    """Progress, trial by trial."""

    def __init__(self, session: Session, stage: str, members: int) -> None:
        self._session, self._stage = session, stage
        self._total = trials_at_most(members, session.config.search.strategies)
        self._best = float("-inf")
        self.trials: JournalledObjective | None = None

    def __call__(self, job: Job, trial: Trial) -> None:
        if job.block is None:
            self._best = max(self._best, trial.mean)
        done = len(self.trials) if self.trials is not None else 0
        text = recipe_of(job.coefficients)
        self._session.tell(self._stage, text, done, max(self._total, done), self._best)


@dataclass(frozen=True)
class _Search:
    """One family's searches, and the test of what they found.

    Attributes:
        propose: scores on the items that the strategies see.
        accept: on those that they don't; None if there are none.
        looks: how many merges the run puts to the test on these items.
        standing: what was chosen for more tasks than these; None if nothing was.
    """

    session: Session
    stage: str
    number: int
    members: tuple[str, ...]
    tasks: tuple[str, ...]
    propose: JournalledObjective
    accept: JournalledObjective | None
    looks: int
    standing: Mapping[str, float] | None

    def run(self) -> FamilyChoice:
        """Propose, then accept or refuse."""
        trials = dict(
            zip(self.members, self.propose.many([{m: 1.0} for m in self.members]), strict=True)
        )
        failed = {name: trial.failure for name, trial in trials.items() if trial.failure}
        alive = tuple(name for name in self.members if name not in failed)
        if not alive:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise EvaluationError(f"no model of the family can be scored: {reasons}")
        best = max(alive, key=lambda name: trials[name].mean)
        found, verdict, chosen = None, None, {best: 1.0}
        results: tuple[SearchResult, ...] = ()
        if len(alive) > 1:
            results = self._results(alive)
            first = max(results, key=lambda result: result.score)
            found = first.strategy
            proposed = self.session.config.merge.canonical(first.coefficients)
            verdict = self._verdict(proposed, best)
            if verdict is None or verdict.accepted:
                chosen = proposed
            elif self.standing is not None:
                chosen = max(chosen, dict(self.standing), key=lambda c: self._scores(c).mean)
        return FamilyChoice(
            self.number,
            self.members,
            self.tasks,
            {name: self._scores({name: 1.0}) for name in alive},
            failed,
            results,
            found,
            verdict,
            self._scores(chosen),
            chosen,
        )

    def _results(self, names: tuple[str, ...]) -> tuple[SearchResult, ...]:
        """One a strategy; later ones may start from what earlier ones found."""
        session, config = self.session, self.session.config.search
        family = session.family(self.members)
        results: dict[str, SearchResult] = {}
        for one in config.strategies:
            problem = Problem(
                names,
                _Canonical(self.propose, session.config.merge.canonical),
                family.similarity,
                family.most,
                dials=family.dials(
                    group_size=one.options.get("group_size"),
                    roles=one.options.get("roles") == "apart",
                ),
                options=one.options,
                seed=config.seed,
                results=results,
            )
            with closing(session.mirror(f"{self.stage} {one.name}")) as study:
                found = search(one.strategy, replace(problem, tell=study.add))
            results[one.name] = replace(found, strategy=one.name)
        return tuple(results.values())

    def _verdict(self, proposed: Mapping[str, float], best: str) -> Verdict | None:
        """Of the paired test against the best single model and the base, on unseen items."""
        if self.accept is None or _single(proposed) is not None:
            return None
        trial = self.accept(proposed)
        if trial.scores is None:
            raise EvaluationError(f"the merge that was found cannot be scored: {trial.failure}")
        return judge(
            trial.scores,
            self._rivals(best),
            level=self.session.config.search.level,
            looks=self.looks,
            tried=len(self.propose),
        )

    def _rivals(self, best: str) -> dict[str, Scores]:
        """The best single model, and the base if there is one that fits."""
        rivals = {best: self._accepted({best: 1.0})}
        base = self.session.base_in(self.members)
        if base in self.members and base not in rivals:
            rivals[base] = self._accepted({base: 1.0})
        elif base is not None and base not in rivals:
            tasks = [task for task in self.session.inputs.tasks if task.name in self.tasks]
            accept = self.session.inputs.division.of(self.tasks).accept
            rivals[base] = self.session.base_scores(self.members, tasks, accept)
        return rivals

    def _accepted(self, coefficients: Mapping[str, float]) -> Scores:
        if self.accept is None:
            raise ValueError("no items accept")
        return _of(self.accept(coefficients))

    def _scores(self, coefficients: Mapping[str, float]) -> Scores:
        """On all search items, those that propose and those that accept."""
        scores = _of(self.propose(coefficients))
        return scores if self.accept is None else joined([scores, self._accepted(coefficients)])


class _Canonical:
    """An objective that knows which coefficients give the same merge."""

    def __init__(self, objective: JournalledObjective, canonical: Any) -> None:
        self._objective, self._canonical = objective, canonical
        self.items, self.blocks = objective.items, objective.blocks

    def __call__(self, coefficients: Mapping[str, float]) -> Trial:
        """See `Objective`."""
        return self._objective(self._canonical(coefficients))

    def many(
        self, candidates: Sequence[Mapping[str, float]], block: int | None = None
    ) -> list[Trial]:
        """See `Objective`."""
        return self._objective.many([self._canonical(each) for each in candidates], block)


def _of(trial: Trial) -> Scores:
    if trial.scores is None:
        raise EvaluationError(trial.failure or "a model cannot be scored")
    return trial.scores


def write_merge(session: Session, choice: FamilyChoice) -> Path:
    """The chosen model of a family as a checkpoint; a single model is used where it lies."""
    if choice.single is not None:
        return session.folder_of(choice.single)
    stage = f"merge-{choice.number}"

    def work(folder: Path) -> dict[str, Any]:
        session.tell(stage, recipe_of(choice.coefficients))
        execute(session.family(choice.members).plan(choice.coefficients), folder / "model")
        return {"method": session.config.merge.method, "coefficients": choice.coefficients}

    session.run.stage(stage, work)
    return session.run.folder(stage) / "model"


def recipe_of(coefficients: Mapping[str, float]) -> str:
    """A candidate in a line."""
    return " + ".join(f"{weight:.3g}·{name}" for name, weight in coefficients.items())
