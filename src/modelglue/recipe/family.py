"""One family's best merge: searches propose it, and items that no search has seen accept it."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelglue.errors import ConfigError, EvaluationError
from modelglue.evaluate.scores import Scores, joined
from modelglue.evaluate.statistics import mean_interval
from modelglue.evaluate.task import Task
from modelglue.merge.engine.stream import execute
from modelglue.recipe.division import Division, accepting_groups, least_p
from modelglue.recipe.estimate import trials_at_most
from modelglue.recipe.family_choice import FamilyChoice, recipe_of, single_of
from modelglue.recipe.mixture_config import FinalMixture
from modelglue.recipe.session import Session
from modelglue.recipe.workers import ACCEPT, blocks_of, parts_of
from modelglue.search.accept import Verdict, judge
from modelglue.search.executors import Executor, Job
from modelglue.search.executors.only import Only
from modelglue.search.problem import Problem, Trial, search
from modelglue.search.result import SearchResult
from modelglue.search.trials import JournalledObjective


def looks_of(families: Sequence[tuple[str, ...]], mixture: FinalMixture) -> int:
    """How many merges may be put to the test: one a family, two if it may be searched once more."""
    searched = sum(len(members) > 1 for members in families)
    return searched * (2 if len(families) > 1 and mixture.narrows else 1)


def choose_in_family(
    session: Session, number: int, members: tuple[str, ...], *, looks: int
) -> FamilyChoice:
    """Run every strategy in one family; every trial is journalled, none is made twice.

    Raises:
        ConfigError: so few items accept that no merge could; nothing was scored.
    """
    tasks = tuple(task.name for task in session.inputs.tasks)
    if len(members) > 1 and not _testable(session, tasks, looks=looks):
        level = session.config.search.level
        raise ConfigError(
            f"search.validation: too few groups of items are set aside for any merge to pass a "
            f"test at level {level:g} / {looks}: add search items, raise search.level, or set "
            "search.validation to 0 to believe every gain"
        )
    return _choose(session, f"search-{number}", number, members, tasks, looks=looks)


def choose_for_tasks(
    session: Session, choice: FamilyChoice, leads: tuple[str, ...], *, looks: int
) -> FamilyChoice:
    """The family's best merge for the tasks that the router will send to it, and no others.

    A model that earned its weight at a task which another expert answers is dead weight here, and
    dilutes the rest. The same strategies run again, on the same journalled trials and those that
    they lack, with the mean over these tasks as their score. (The paper has no such step.)

    Args:
        leads: the tasks, chosen without a look at the items that accept. Where they are all tasks,
            or none, or have too few items for a test, or the family has one model, the choice
            stays as it is.
    """
    if len(choice.members) == 1 or not leads or set(leads) == set(choice.tasks):
        return choice
    if not _testable(session, leads, looks=looks):
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
    )


def _testable(session: Session, names: tuple[str, ...], *, looks: int) -> bool:
    """Whether a merge could pass the test at these tasks; always, where none is asked for."""
    tasks = [task for task in session.inputs.tasks if task.name in names]
    groups = accepting_groups(tasks, session.inputs.division)
    return not groups or least_p(groups) <= session.config.search.level / looks


def _choose(
    session: Session,
    stage: str,
    number: int,
    members: tuple[str, ...],
    names: tuple[str, ...],
    *,
    looks: int,
    earlier: tuple[str, ...] = (),
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
            family = _Search(session, stage, number, members, names, propose, accept, looks)
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
    """

    session: Session
    stage: str
    number: int
    members: tuple[str, ...]
    tasks: tuple[str, ...]
    propose: JournalledObjective
    accept: JournalledObjective | None
    looks: int

    def run(self) -> FamilyChoice:
        """Propose, then accept or refuse."""
        failed: dict[str, str] = {}
        singles = self._singles(failed)
        if not singles:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise EvaluationError(f"no model of the family can be scored: {reasons}")
        best_first = sorted(singles, key=lambda name: -singles[name].mean)
        results = self._results(tuple(singles)) if len(singles) > 1 else ()
        chosen, found, verdict = {best_first[0]: 1.0}, None, None
        for result in sorted(results, key=lambda result: -result.score):
            proposed = self.session.config.merge.canonical(result.coefficients)
            trial = self._trial(proposed)
            if trial.failure is not None:
                failed[recipe_of(proposed)] = trial.failure
                continue
            found = result.strategy
            verdict = self._verdict(proposed, best_first, failed)
            if verdict is None or verdict.accepted:
                chosen = proposed
            break
        return FamilyChoice(
            self.number,
            self.members,
            self.tasks,
            singles,
            failed,
            results,
            found,
            verdict,
            _of(self._trial(chosen)),
            _of(self.propose(chosen)),
            chosen,
        )

    def _singles(self, failed: dict[str, str]) -> dict[str, Scores]:
        """Each model's scores on all search items; who cannot be scored goes to `failed`."""
        every = [{name: 1.0} for name in self.members]
        for objective in (self.propose, self.accept):
            if objective is not None:
                trials = zip(self.members, objective.many(every), strict=True)
                failed.update({n: trial.failure for n, trial in trials if trial.failure})
        alive = (name for name in self.members if name not in failed)
        return {name: _of(self._trial({name: 1.0})) for name in alive}

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
                result = search(one.strategy, replace(problem, tell=study.add))
            own = mean_interval(_of(problem.objective(result.coefficients)))
            results[one.name] = replace(result, strategy=one.name, low=own.low, high=own.high)
        return tuple(results.values())

    def _verdict(
        self, proposed: Mapping[str, float], singles: Sequence[str], failed: dict[str, str]
    ) -> Verdict | None:
        """Of the paired tests against every single model and the base, on unseen items.

        Which single model is the best is not known, only which looks so on these items: a merge
        is to beat them all.
        """
        if self.accept is None or single_of(proposed) is not None:
            return None
        rivals = {name: _of(self.accept({name: 1.0})) for name in singles}
        base = self.session.base_in(self.members)
        if base is not None and base not in (*rivals, *failed):
            try:
                rivals[base] = self._base_scores()
            except EvaluationError as error:
                failed[base] = str(error)
        return judge(
            _of(self.accept(proposed)),
            rivals,
            level=self.session.config.search.level,
            looks=self.looks,
            tried=len(self.propose),
        )

    def _base_scores(self) -> Scores:
        tasks = [task for task in self.session.inputs.tasks if task.name in self.tasks]
        accept = self.session.inputs.division.of(self.tasks).accept
        return self.session.base_scores(self.members, tasks, accept)

    def _trial(self, coefficients: Mapping[str, float]) -> Trial:
        """On all search items, those that propose and those that accept."""
        trials = [self.propose(coefficients)]
        if self.accept is not None and trials[0].failure is None:
            trials.append(self.accept(coefficients))
        if trials[-1].failure is not None:
            return trials[-1]
        return Trial(joined([_of(trial) for trial in trials]))


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
