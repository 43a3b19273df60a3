"""What a search will meet in the models at hand, told from their headers before any work."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from modelglue.checkpoint.reader import Checkpoint
from modelglue.recipe.dials import depth, scaling_problem
from modelglue.recipe.estimate import mergeable_groups
from modelglue.recipe.fitting import is_bundle, misfit
from modelglue.recipe.mixture_config import FinalMixture
from modelglue.recipe.search_config import SearchConfig, StrategyConfig


def search_problems(search: SearchConfig, models: Mapping[str, Checkpoint]) -> list[str]:
    """What would end a search of layers in its middle."""
    problems = []
    for one, group, layers in _reordered(search, models):
        most = one.options.get("most_layers")
        if layers < 1:
            problems.append(
                f"search: {one.name}: {', '.join(group)} have no numbered layers to put in another "
                "order; leave it out"
            )
        elif most is not None and most < layers:
            problems.append(
                f"search: {one.name}: most_layers is {most}, and {', '.join(group)} have {layers}; "
                "the search begins with one of them as it is"
            )
    return problems


def mixture_problems(mixture: FinalMixture, models: Mapping[str, Checkpoint]) -> list[str]:
    """What no family could be mixed for, at levels where experts are parts of one model."""
    if mixture.kind is None or is_bundle(mixture.kind) or not models:
        return []
    first = models[mergeable_groups(dict(models))[0][0]].path
    reason = misfit({"one": first, "another": first}, first, replace(mixture.kind, top_k=1))
    return [] if reason is None else [f"mixture: {reason}"]


def search_notes(search: SearchConfig, models: Mapping[str, Checkpoint]) -> list[str]:
    """What a search of layers will leave out that the recipe asks for."""
    notes = []
    for one, group, layers in _reordered(search, models):
        why = scaling_problem(list(models[group[0]].tensors), layers)
        if one.options.get("scales") != "off" and why is not None:
            notes.append(f"{one.name} moves the layers of {', '.join(group)} unscaled: {why}.")
    return notes


def _reordered(
    search: SearchConfig, models: Mapping[str, Checkpoint]
) -> Iterator[tuple[StrategyConfig, tuple[str, ...], int]]:
    """(the strategy, models that may be a family, their layers) of each search of layers."""
    strategies = [one for one in search.strategies if one.strategy == "data_flow"]
    for group in mergeable_groups(models) if strategies else ():
        first = models[group[0]]
        if len(group) > 1:
            yield from ((one, group, depth(first.tensors, first.config)) for one in strategies)
