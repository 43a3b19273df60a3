"""Stages that choose: families, and who stands behind the router. They see search items only.

The best merge of each family is chosen in `family`, under the same rule.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.evaluate.scores import Scores
from modelglue.evaluate.task import SplitName, Task
from modelglue.recipe.inputs import refuse_changed
from modelglue.recipe.session import Session
from modelglue.zoo.cluster import Clustering, cluster


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


def asked_for(session: Session, members: Mapping[str, Iterable[str]]) -> list[str]:
    """Who is an expert whatever its scores, as the user gave prompts for it.

    Prompts count for nothing, which is noted, where routers are made of scores.

    Args:
        members: candidate → the models of the zoo that it stands for.
    """
    given = [name for name, own in members.items() if given_prompts(session, own)]
    if given and session.config.mixture.by_scores:
        session.note(
            f"the prompts given for {', '.join(given)} are not used: with initialisation knn the "
            "router, and who stands behind it, go by scores"
        )
        return []
    return given


def given_prompts(session: Session, members: Iterable[str]) -> list[str]:
    """The router prompts that the user gave for any of these models."""
    own = set(members)
    entries = [entry for entry in session.config.models if entry.name in own]
    return [prompt for entry in entries for prompt in entry.prompts or ()]


def prompts_of(task: Task, split: SplitName) -> list[str]:
    """What the router sees of each item of a split."""
    return [item.prompt for item in task.items(split)]
