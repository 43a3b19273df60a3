"""The recipe of Model-GLUE (arXiv 2410.05357), from a zoo to one model; read it from the top.

Every step is a stage of the run directory: done once, kept, skipped when the command is given
again. Choices are made on search items alone; the report items are scored last, once.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from modelglue.evaluate.threads import threads_for
from modelglue.mixture.notation import MixtureKind
from modelglue.recipe import choose, contest
from modelglue.recipe.assemble import assemble
from modelglue.recipe.choose import Team
from modelglue.recipe.config import RecipeConfig
from modelglue.recipe.contest import Contestant
from modelglue.recipe.estimate import mergeable_groups
from modelglue.recipe.family import (
    choose_for_tasks,
    choose_in_family,
    looks_of,
    write_merge,
)
from modelglue.recipe.family_choice import FamilyChoice
from modelglue.recipe.fitting import fitting
from modelglue.recipe.inputs import open_inputs
from modelglue.recipe.item_scores import scores_at_all_tasks
from modelglue.recipe.mixing import (
    Candidate,
    Experts,
    write_mixture,
)
from modelglue.recipe.rundir import RunDirectory
from modelglue.recipe.session import Session
from modelglue.report.data import RunReport
from modelglue.report.events import Listener, silent
from modelglue.report.write import read_report, write_report
from modelglue.search.problem import canonical
from modelglue.zoo.cluster import Clustering


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        path: the run directory.
        model: the glued model: a checkpoint, or a mixture bundle.
        report: what report.json holds.
        fresh: False if everything stood already and nothing was done.
    """

    path: Path
    model: Path
    report: RunReport
    fresh: bool


def glue(
    config: RecipeConfig,
    *,
    listen: Listener = silent,
    notes: tuple[str, ...] = (),
    command: str = "",
) -> Outcome:
    """Make one better model of a zoo: cluster, merge selectively, mix, and show what it is worth.

    Args:
        config: the checked recipe.
        listen: told of everything that is done.
        notes: remarks for the report.
        command: how to make the same again, for the report.

    Raises:
        ConfigError: models or tasks that cannot be used; nothing was done.
        RunConflict: the output holds another run, or its inputs changed.
        SandboxUnavailable: a task runs code and nothing here can contain it.
    """
    began = time.monotonic()
    with (
        open_inputs(config) as inputs,
        RunDirectory(config.output, config.to_mapping()) as run,
        threads_for(max(model.parameters for model in inputs.models.values())),
    ):
        session = Session(config, inputs, run, listen, notes)
        resumed = run.done("cluster")
        clustering = choose.find_families(session)
        if (finished := _finished(run)) is not None:
            return finished
        families = ordered_families(config, clustering)
        looks = looks_of(families, config.mixture)
        choices = [
            choose_in_family(session, number, members, looks=looks)
            for number, members in enumerate(families, start=1)
        ]
        chosen, experts = _experts(session, choices, looks=looks)
        team = experts.team
        kind = config.mixture.kind or MixtureKind()
        if len(team.leads) > 1:
            made = write_mixture(session, "mixture", experts, kind=kind)
            if made.get("table"):
                items, count = made["table"]
                session.note(
                    f"the router is made of the scores of {count} experts on {items} search items"
                )
        rivals = _rivals(session, choices)
        if len(rivals.team.leads) > 1:
            write_mixture(session, "unmerged", rivals, kind=MixtureKind())
        # Every choice stands in a manifest; only now are the report items looked at.
        entrants = contestants(session, choices, chosen, team, rivals.team)
        results = contest.hold(session, entrants)
        routes = contest.count_routes(session, "mixture") if len(team.leads) > 1 else None
        report = assemble(
            session,
            clustering,
            choices,
            chosen,
            team,
            results,
            routes,
            # What a resumed run took in all is not known.
            None if resumed else time.monotonic() - began,
            command,
        )
        model = _point_at(run, _model_folder(session, experts))
        write_report(report, run.path)
        run.stage("done", lambda folder: {"model": str(model.relative_to(run.path))})
        return Outcome(run.path, model, report, fresh=True)


def _experts(
    session: Session, choices: list[FamilyChoice], *, looks: int
) -> tuple[list[FamilyChoice], Experts]:
    """What of the families goes on, and who stands behind the router."""
    config = session.config.mixture
    if config.kind is None:
        best = max(choices, key=lambda choice: choice.scores.mean)
        return [best], Experts(Team({best.label: best.tasks}), merged_candidates(session, [best]))
    if config.experts == "models":
        singles = single_candidates(session, choices)
        usable = _usable(session, {n: each.folder for n, each in singles.items()}, config.kind)
        asked = choose.asked_for(session, {name: (name,) for name in usable})
        team = choose.choose_team({name: singles[name].scores for name in usable}, asked)
        merged = merged_candidates(session, choices[:1])
        ((label, dense),) = merged.items()
        if len(team.leads) == 1:  # what the family came to is no worse than any of its models
            return choices[:1], Experts(Team({label: choices[0].tasks}), merged)
        return choices[:1], Experts(team, singles, dense.folder)
    folders = {c.label: session.folder_of(c.members[0]) for c in choices}
    usable = _usable(session, folders, config.kind)
    families = [choice for choice in choices if choice.label in usable]
    asked = choose.asked_for(session, {c.label: c.members for c in families})
    leads = choose.choose_team({c.label: c.proposing for c in families}, asked).leads
    chosen = [
        choose_for_tasks(session, choice, leads[choice.label], looks=looks)
        for choice in families
        if choice.label in leads
    ]
    team = Team({c.label: leads[choices[c.number - 1].label] for c in chosen})
    found = merged_candidates(session, chosen)
    if config.by_scores and len(team.leads) > 1:
        for c in chosen:
            scores = scores_at_all_tasks(session, c, choices[c.number - 1])
            found[c.label] = replace(found[c.label], scores=scores)
    return chosen, Experts(team, found)


def _rivals(session: Session, choices: list[FamilyChoice]) -> Experts:
    """The mixture without merging, which the glued mixture is to be compared with."""
    if session.config.mixture.kind is None:
        return Experts(Team({}), {})
    singles = single_candidates(session, choices)
    team = choose.choose_team({name: single.scores for name, single in singles.items()})
    return Experts(team, singles)


def _usable(session: Session, folders: dict[str, Path], kind: MixtureKind) -> list[str]:
    """Who fits into the mixture beside the first, which is of the largest family."""
    found = fitting(folders, kind)
    for name, reason in found.items():
        if reason is not None:
            session.note(f"{name} is no expert of this mixture: {reason}")
    return [name for name, reason in found.items() if reason is None]


def ordered_families(config: RecipeConfig, clustering: Clustering) -> list[tuple[str, ...]]:
    """The families, each in the recipe's order of models, which decides ties."""
    return [
        tuple(name for name in config.names if name in family) for family in clustering.families
    ]


def merged_candidates(session: Session, choices: list[FamilyChoice]) -> dict[str, Candidate]:
    """The chosen model of each family."""
    return {
        choice.label: Candidate(choice.members, write_merge(session, choice), choice.scores)
        for choice in choices
    }


def single_candidates(session: Session, choices: list[FamilyChoice]) -> dict[str, Candidate]:
    """Every model of the zoo as it is, but for those that cannot be scored."""
    scores = {name: own for choice in choices for name, own in choice.singles.items()}
    return {name: Candidate((name,), session.folder_of(name), scores[name]) for name in scores}


def contestants(
    session: Session,
    choices: list[FamilyChoice],
    chosen: list[FamilyChoice],
    team: Team,
    rivals: Team,
) -> list[Contestant]:
    """The rows of the final table: singles, uniform merges, heuristics, mixtures, glued model."""
    rows = []
    # Who cannot be scored alone spoils every merge.
    alive = {name for choice in choices for name in choice.singles}
    groups = mergeable_groups({n: m for n, m in session.inputs.models.items() if n in alive})
    everything = groups[0]
    if _mergeable(session, everything):
        rows.append(_uniform("uniform merge of everything", everything, everything))
    for choice in choices:
        group = tuple(name for name in choice.members if name in alive)
        rows += [Contestant(name, "single", group, {name: 1.0}) for name in choice.singles]
        if len(group) > 1:
            which = f" {choice.number}" if sum(len(c.members) > 1 for c in choices) > 1 else ""
            if _mergeable(session, group):
                rows.append(_uniform(f"uniform merge of the family{which}", group, group))
            rows += [
                Contestant(
                    f"{result.strategy}{which}",
                    "heuristic",
                    group,
                    result.coefficients,
                    note=f"the best of {result.trials} tried"
                    + ", kept" * (choice in chosen and result.strategy == choice.winner),
                )
                for result in choice.searches
            ]
    if len(rivals.leads) > 1:
        rows.append(
            Contestant(
                "mixture without merging",
                "mixture",
                bundle="unmerged",
                note=", ".join(rivals.leads),
            )
        )
    if len(team.leads) > 1:
        rows.append(
            Contestant("glued model", "glued", bundle="mixture", note=", ".join(team.leads))
        )
    else:
        (sole,) = team.leads
        rows.append(_alone(sole, choices, chosen))
    return rows


def _alone(name: str, choices: list[FamilyChoice], chosen: list[FamilyChoice]) -> Contestant:
    """The glued model where nobody stands beside it: a family's choice, or a model of the zoo."""
    found = next((choice for choice in chosen if choice.label == name), None)
    if found is not None:
        return Contestant("glued model", "glued", found.members, found.coefficients, note=name)
    family = next(choice.members for choice in choices if name in choice.members)
    return Contestant("glued model", "glued", family, {name: 1.0}, note=name)


def _mergeable(session: Session, group: tuple[str, ...]) -> bool:
    """Whether the recipe's method can merge all of them at once."""
    most = session.family(group).most if len(group) > 1 else 1
    return len(group) > 1 and (most is None or len(group) <= most)


def _uniform(name: str, group: tuple[str, ...], members: tuple[str, ...]) -> Contestant:
    return Contestant(
        name,
        "uniform",
        group,
        canonical({member: 1 / len(members) for member in members}),
        note=f"{len(members)} models",
    )


def _model_folder(session: Session, experts: Experts) -> Path:
    if len(experts.team.leads) > 1:
        return session.mixture_folder("mixture")
    return experts.candidates[next(iter(experts.team.leads))].folder


def _point_at(run: RunDirectory, folder: Path) -> Path:
    """`model` in the run directory leads to the glued model."""
    link = run.path / "model"
    if not link.is_symlink():
        inside = folder.is_relative_to(run.path)
        link.symlink_to(folder.relative_to(run.path) if inside else folder.resolve())
    return link


def _finished(run: RunDirectory) -> Outcome | None:
    if not run.done("done"):
        return None
    return Outcome(run.path, run.path / "model", read_report(run.path), fresh=False)
