"""From what the stages left to what the report says."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import modelglue
from modelglue.evaluate.statistics import paired_difference
from modelglue.recipe.choose import Team
from modelglue.recipe.contest import Result, best_single, oracle
from modelglue.recipe.family_choice import FamilyChoice
from modelglue.recipe.fitting import is_bundle
from modelglue.recipe.session import Session
from modelglue.report.data import (
    AcceptanceTest,
    Difference,
    InputInfo,
    ModelFate,
    PairReason,
    RivalComparison,
    RoutingTable,
    RunReport,
    SearchGeneration,
    SearchPath,
    SearchStep,
    SimilarityMap,
    TableRow,
    TaskInfo,
)
from modelglue.search.problem import Coefficients, models_of
from modelglue.search.result import SearchResult
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
                task.name,
                task.kind,
                len(task.items("search")),
                len(task.items("report")),
                len(session.inputs.division.accept.get(task.name, ())),
            )
            for task in session.inputs.tasks
        ),
        acceptance=acceptance_tests([*choices, *(c for c in chosen if c not in choices)]),
        table=tuple(_table(results)),
        notes=(*session.notes, *_unscored([*choices, *(c for c in chosen if c not in choices)])),
        inputs=tuple(
            InputInfo(name, model.fingerprint()) for name, model in session.inputs.models.items()
        ),
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        command=command,
    )


def _unscored(choices: Sequence[FamilyChoice]) -> list[str]:
    """What a search found or asked for, and could not score; models are among the fates."""
    return [
        f"{name} cannot be scored: {reason}"
        for choice in choices
        for name, reason in choice.failed.items()
        if name not in choice.members
    ]


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
                search=alone[name].by_task() if name in alone else {},
            )
    return [fates[name] for name in session.config.names]


def _fate(session: Session, name: str, choice: FamilyChoice, team: Team) -> tuple[Any, str]:
    """What became of a model, and why."""
    if name in choice.failed:
        return "dropped", f"it cannot be scored: {choice.failed[name]}"
    if name in team.leads and name != choice.label:
        return "expert", f"as it is, for {', '.join(team.leads[name])}"
    if name not in models_of(choice.coefficients):
        by = "the accepting test" if choice.winner is None else choice.winner
        return "dropped", f"{by} for {', '.join(choice.tasks)}: {_why(name, choice)}"
    if choice.label not in team.leads:
        kind = session.config.mixture.kind
        if kind is not None and session.config.mixture.experts == "models" and not is_bundle(kind):
            share = session.config.merge.share(choice.coefficients, name, choice.members)
            return "merged", f"{share} in {choice.label}, which lends what the experts share"
        return "dropped", "the best of its family leads at no task"
    led = ", ".join(team.leads[choice.label]) or "prompts that were given for it"
    if choice.single is None:
        share = session.config.merge.share(choice.coefficients, name, choice.members)
        return "merged", f"{share} in {choice.label}"
    return "expert", f"as it is, for {led}"


def _why(name: str, choice: FamilyChoice) -> str:
    """Why a model has no part in what was chosen in its family."""
    if choice.winner is None:
        return f"no merge is shown to be better than {choice.label}"
    won = next(result for result in choice.searches if result.strategy == choice.winner)
    turns = (step.reason for step in won.steps if step.candidate == name)
    return next(turns, "it has no part in the best candidate")


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
    whole = {choice.number: choice.coefficients for choice in choices}
    superseded = {c.number for c in again if c.coefficients != whole[c.number]}
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
        coefficients=_in_order(result.coefficients, choice.members),
        steps=tuple(SearchStep(**vars(step)) for step in result.steps),
        generations=tuple(SearchGeneration(**vars(each)) for each in result.generations),
        items=result.items,
        low=result.low,
        high=result.high,
    )


def _in_order(coefficients: Coefficients, members: Sequence[str]) -> dict[str, float]:
    """The same with the models in the order in which they are merged: a `t` goes by it."""
    alone = {name: coefficients[name] for name in members if name in coefficients}
    return alone | {name: n for name, n in coefficients.items() if name not in alone}


def acceptance_tests(choices: Sequence[FamilyChoice]) -> tuple[AcceptanceTest, ...]:
    """What a report shows of the tests that accepted or refused merges."""
    return tuple(
        AcceptanceTest(
            family=choice.number - 1,
            candidate=choice.found or "",
            purpose=choice.tasks,
            accepted=choice.verdict.accepted,
            level=choice.verdict.level,
            looks=choice.verdict.looks,
            tried=choice.verdict.tried,
            comparisons=tuple(
                RivalComparison(one.rival, Difference(**vars(one.difference)), one.p)
                for one in choice.verdict.comparisons
            ),
            text=choice.verdict.words(),
        )
        for choice in choices
        if choice.verdict is not None
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
