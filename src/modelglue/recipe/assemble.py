"""From what the stages left to what the report says."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import modelglue
from modelglue.evaluate.statistics import paired_difference
from modelglue.recipe.choose import FamilyChoice, Team
from modelglue.recipe.contest import Result, best_single, oracle
from modelglue.recipe.session import Session
from modelglue.report.data import (
    Difference,
    InputInfo,
    ModelFate,
    PairReason,
    RoutingTable,
    RunReport,
    SearchPath,
    SearchStep,
    SimilarityMap,
    TableRow,
    TaskInfo,
)
from modelglue.search.problem import SearchResult
from modelglue.zoo.cluster import Clustering

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def assemble(
    session: Session,
    clustering: Clustering,
    choices: Sequence[FamilyChoice],
    chosen: Sequence[FamilyChoice],
    team: Team,
    results: Sequence[Result],
    routes: Mapping[str, Any] | None,
    seconds: float | None,
    command: str,
) -> RunReport:
    """The report of a run whose stages all stand."""
    tasks = tuple(task.name for task in session.inputs.tasks)
    return RunReport(
        title=session.config.title,
        modelglue=modelglue.__version__,
        seconds=None if seconds is None else round(seconds, 1),
        models=tuple(_fates(session, choices, chosen, team)),
        merge=session.config.merge.words(),
        similarity=similarity_map(clustering, [choice.members for choice in choices]),
        searches=search_paths(choices, chosen),
        routing=None
        if routes is None
        else RoutingTable(tuple(routes["experts"]), tasks, tuple(map(tuple, routes["counts"]))),
        tasks=tuple(
            TaskInfo(
                task.name, task.config.kind, len(task.items("search")), len(task.items("report"))
            )
            for task in session.inputs.tasks
        ),
        table=tuple(_table(results)),
        notes=session.notes,
        inputs=tuple(
            InputInfo(name, model.fingerprint()) for name, model in session.inputs.models.items()
        ),
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        command=command,
    )


def _fates(
    session: Session,
    choices: Sequence[FamilyChoice],
    chosen: Sequence[FamilyChoice],
    team: Team,
) -> list[ModelFate]:
    fates = {}
    final = {choice.number: choice for choice in (*choices, *chosen)}
    alone = {name: own for choice in choices for name, own in choice.singles.items()}
    for choice in final.values():
        for name in choice.members:
            checkpoint = session.inputs.models[name]
            fate, reason = _fate(session, name, choice, team)
            fates[name] = ModelFate(
                name=name,
                path=str(checkpoint.path),
                architecture=str(checkpoint.config.get("model_type", "unknown")),
                parameters=checkpoint.parameters,
                family=choice.number - 1,
                fate=fate,
                reason=reason,
                search=alone[name].by_task(),
            )
    return [fates[name] for name in session.config.names]


def _fate(session: Session, name: str, choice: FamilyChoice, team: Team) -> tuple[Any, str]:
    """What became of a model, and why."""
    weight = choice.coefficients.get(name)
    if weight is None:
        won = next(result for result in choice.searches if result.strategy == choice.winner)
        step = next(step for step in won.steps if step.candidate == name)
        return "dropped", f"{won.strategy} for {', '.join(choice.tasks)}: {step.reason}"
    if choice.label not in team.leads:
        return "dropped", "the best of its family leads at no task"
    led = ", ".join(team.leads[choice.label]) or "prompts that were given for it"
    if len(choice.coefficients) > 1:
        return "merged", f"{session.config.merge.share(weight)} in {choice.label}"
    return "expert", f"as it is, for {led}"


def similarity_map(
    clustering: Clustering, families: Sequence[tuple[str, ...]] | None = None
) -> SimilarityMap:
    """What a report shows of a clustering; `families` may give the members in another order."""
    return SimilarityMap(
        names=clustering.similarity.names,
        matrix=tuple(tuple(map(float, row)) for row in clustering.similarity.matrix),
        threshold=clustering.threshold,
        families=tuple(families or clustering.families),
        reasons=tuple(PairReason(a, b, why) for (a, b), why in clustering.reasons.items()),
    )


def search_paths(
    choices: Sequence[FamilyChoice], chosen: Sequence[FamilyChoice] = ()
) -> tuple[SearchPath, ...]:
    """What a report shows of the searches in all families; `chosen` may have searched again."""
    again = [choice for choice in chosen if choice not in choices]
    superseded = {choice.number for choice in again}
    return tuple(
        _path(
            choice,
            result,
            narrowed=choice in again,
            wins=choice in again or choice.number not in superseded,
        )
        for choice in (*choices, *again)
        for result in choice.searches
    )


def _path(choice: FamilyChoice, result: SearchResult, *, narrowed: bool, wins: bool) -> SearchPath:
    purpose = f" for {', '.join(choice.tasks)}" if narrowed else ""
    return SearchPath(
        family=choice.number - 1,
        strategy=result.strategy + purpose,
        winner=wins and result.strategy == choice.winner,
        score=result.score,
        trials=result.trials,
        coefficients=result.coefficients,
        steps=tuple(SearchStep(**step.to_json()) for step in result.steps),
    )


def _table(results: Sequence[Result]) -> list[TableRow]:
    best = best_single(results)
    ideal = oracle(results)
    return [*(_row(r, r.contestant.kind, best) for r in results), _row(ideal, "oracle", best)]


def _row(result: Result, kind: Any, best: Result) -> TableRow:
    difference = None
    if result is not best:
        interval = paired_difference(result.scores, best.scores)
        difference = Difference(interval.mean, interval.low, interval.high)
    return TableRow(
        name=result.contestant.name,
        kind=kind,
        scores=result.scores.by_task(),
        average=result.scores.mean,
        difference=difference,
        stored=result.stored,
        active=result.active,
        note=result.contestant.note,
    )
