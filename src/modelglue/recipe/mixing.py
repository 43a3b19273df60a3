"""Who stands behind the router, and the mixture that they become. Search items only."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modelglue.evaluate.scores import Scores
from modelglue.mixture.compose import compose
from modelglue.mixture.conditions import as_json
from modelglue.mixture.notation import MixtureKind
from modelglue.recipe.choose import Team, given_prompts, prompts_of
from modelglue.recipe.fitting import is_bundle
from modelglue.recipe.item_scores import score_table
from modelglue.recipe.session import Session


@dataclass(frozen=True)
class Candidate:
    """A model that may become an expert.

    Attributes:
        members: the models of the zoo whose router prompts are its own: a family, or one model.
        folder: the checkpoint.
        scores: its own on the search items; of all tasks, where routers are made of scores.
    """

    members: tuple[str, ...]
    folder: Path
    scores: Scores


@dataclass(frozen=True)
class Experts:
    """What a mixture is made of.

    Attributes:
        team: the experts, and what each is there for.
        candidates: at least those, by name.
        dense: what lends the parts that experts share, at levels where they do; by default the
            first expert.
    """

    team: Team
    candidates: Mapping[str, Candidate]
    dense: Path | None = None


def write_mixture(
    session: Session, stage: str, experts: Experts, *, kind: MixtureKind
) -> dict[str, Any]:
    """The team behind a router made of prompts, or of the experts' scores; nothing is trained."""

    def work(folder: Path) -> dict[str, Any]:
        leads, found = experts.team.leads, experts.candidates
        session.tell(stage, f"a router over {', '.join(leads)}")
        prompts: dict[str, list[str]] = {}
        table = None
        if session.config.mixture.by_scores:
            table = score_table(session.inputs.tasks, {name: found[name].scores for name in leads})
        else:
            prompts = {
                name: prompts_for(session, found[name].members, own) for name, own in leads.items()
            }
        out = folder / ("bundle" if is_bundle(kind) else "checkpoint")
        summary = compose(
            {name: found[name].folder for name in leads},
            prompts,
            out,
            kind=replace(kind, top_k=min(kind.top_k, len(leads))),
            dense=experts.dense,
            reasons={name: _why(tasks) for name, tasks in leads.items()},
            initialisation=session.config.mixture.initialisation,
            scores=table,
            seed=session.config.search.seed,
            device=session.config.device,
        )
        return {
            "folder": out.name,
            "leads": {name: list(tasks) for name, tasks in leads.items()},
            "encoder": summary.encoder,
            "initialisation": summary.initialisation,
            "form": summary.form,
            "not_stock": summary.not_stock,
            "conditions": as_json(summary.conditions),
            "confusions": list(summary.confusions),
            "validation": summary.validation and summary.validation.accuracy,
            "table": table and list(table.scores.shape),
            "items": summary.items and asdict(summary.items),
            "stored": summary.stored,
            "active": summary.active,
        }

    made = session.run.stage(stage, work)
    if kind.short == "F-L-T" and made.get("not_stock"):
        session.note(f"{stage}: written with its own modelling file. {made['not_stock']}")
    for confusion in made.get("confusions", ()):
        session.note(f"{stage}: {confusion}.")
    return made


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


def _why(tasks: Iterable[str]) -> str:
    led = ", ".join(tasks)
    return f"best on the search items of {led}" if led else "prompts were given for it"
