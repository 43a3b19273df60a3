"""What a run will take, told before it starts: evaluations, memory, disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelglue.checkpoint.reader import Checkpoint
from modelglue.recipe.search_config import StrategyConfig
from modelglue.search.strategies.heuristic_coefficient import SHARES
from modelglue.zoo.compatibility import incompatibility

if TYPE_CHECKING:
    from modelglue.recipe.config import RecipeConfig
    from modelglue.recipe.inputs import Inputs

TRIALS_A_MODEL = {"heuristic_average": 1, "greedy_soup": 1}
"""Trials that a strategy makes for each model but the first; other heuristics try every share."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage and the most that it can take.

    Attributes:
        evaluations: (model, task) pairs to score.
        items: items to score in them.
        disk: bytes that it writes.
        memory: bytes of weights that it holds.
    """

    stage: str
    text: str
    evaluations: int = 0
    items: int = 0
    disk: int = 0
    memory: int = 0


def trials_at_most(models: int, strategies: Sequence[StrategyConfig]) -> int:
    """Candidates that a family of so many models can need; shared ones are made once.

    >>> trials_at_most(3, [StrategyConfig("heuristic_coefficient", "heuristic_coefficient")])
    21
    """
    if models == 1:
        return 1
    known: set[str] = set()
    total = models
    for one in strategies:
        own = _own_trials(one, models)
        start = one.options.get("warm_start")
        # One that did not run before runs then, to its end, even beyond what `trials` allows.
        if start is not None and start not in known:
            own = max(own, _own_trials(StrategyConfig(start, start), models))
        known.add(one.name)
        total += own
    return total


def _own_trials(one: StrategyConfig, models: int) -> int:
    """Of one strategy, the models alone left out where it tries all of what it could."""
    if "trials" in one.options:
        return int(one.options["trials"])
    return TRIALS_A_MODEL.get(one.strategy, len(SHARES)) * (models - 1)


def estimate(config: "RecipeConfig", inputs: "Inputs") -> list[StageEstimate]:
    """The stages with the most that each can take.

    Families are not known before the weights are read; models that could be merged by their
    headers count as one family here, which is the dearest case.
    """
    groups = mergeable_groups(inputs.models)
    size = {name: checkpoint.nbytes for name, checkpoint in inputs.models.items()}
    search_items = sum(len(task.items("search")) for task in inputs.tasks)
    report_items = sum(len(task.items("report")) for task in inputs.tasks)
    tasks = len(inputs.tasks)
    adapted = [size[entry.name] for entry in config.models if "+" in entry.model]
    text = f"compare {len(size)} models, each read once"
    stages = [StageEstimate("cluster", text, disk=sum(adapted))]
    held = max(sum(size[name] for name in group) + size[group[0]] for group in groups)
    for number, group in enumerate(groups, start=1):
        trials = trials_at_most(len(group), config.search.strategies)
        own = sum(size[name] for name in group) + (size[group[0]] if len(group) > 1 else 0)
        stages.append(
            StageEstimate(
                f"search-{number}",
                f"at most {trials} candidates of {', '.join(group)}",
                evaluations=trials * tasks,
                items=trials * search_items,
                memory=own,
            )
        )
        if len(group) > 1:
            stages.append(
                StageEstimate(f"merge-{number}", "write the best of them", disk=size[group[0]])
            )
    experts, rivals = _mixed(config, models=len(size))
    largest = sorted(size.values(), reverse=True)
    if experts > 1:
        # With knn a merge for some of the tasks is scored at the others, too.
        again = config.mixture.by_scores and config.mixture.narrows
        merges = min(experts, sum(len(group) > 1 for group in groups)) if again else 0
        stages.append(
            StageEstimate(
                "mixture",
                f"a router over at most {experts}",
                evaluations=merges * (tasks - 1),
                items=merges * search_items,
                disk=sum(largest[:experts]),
                memory=held if merges else 0,
            )
        )
    if rivals > 1:
        disk = sum(largest[:rivals])
        text = "the mixture without merging, to compare"
        stages.append(StageEstimate("unmerged", text, disk=disk))
    # Each family of at least two has its rows; there are at most half as many as models.
    families = max(1, len(size) // 2)
    rows = len(size) + 3 + families * (len(config.search.strategies) + 1)
    stages.append(
        StageEstimate(
            "report",
            f"score at most {rows} contestants on the report items",
            evaluations=rows * tasks,
            items=rows * report_items,
            memory=max(held, sum(largest[: max(experts, rivals)])),
        )
    )
    return stages


def _mixed(config: "RecipeConfig", *, models: int) -> tuple[int, int]:
    """How many experts there are at most, and how many in the mixture without merging."""
    if config.mixture.kind is None:
        return 0, 0
    tasks = len(config.tasks)
    # A family that splits off may lead a task, and prompts bring a family in whatever its scores.
    asked_for = sum(entry.prompts is not None for entry in config.models)
    if config.mixture.by_scores:
        asked_for = 0
    return min(models, tasks + asked_for), min(models, tasks)


def mergeable_groups(models: Mapping[str, Checkpoint]) -> list[tuple[str, ...]]:
    """Models whose headers and vocabularies would let them be merged, largest group first."""
    groups: list[list[str]] = []
    for name, checkpoint in models.items():
        for group in groups:
            if incompatibility(models[group[0]], checkpoint) is None:
                group.append(name)
                break
        else:
            groups.append([name])
    return sorted((tuple(group) for group in groups), key=len, reverse=True)
