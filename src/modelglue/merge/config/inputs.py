"""Which of the models that are listed a method merges, and which is its base."""

from collections.abc import Sequence
from dataclasses import dataclass

from modelglue.merge.config.schema import ModelEntry, SliceEntry, same_model
from modelglue.merge.method import Method


@dataclass(frozen=True)
class Inputs:
    """What is merged together.

    Attributes:
        models: n of them, in the order of the method: where it takes the base for the first of
            the models, that comes first wherever it is listed.
        base: kept apart, where the method reads one.
    """

    models: tuple[ModelEntry, ...]
    base: ModelEntry | None = None


def arrange(method: Method, group: SliceEntry, base: str | None) -> Inputs:
    """Tell the base from the models; it may be listed among them, as mergekit has it.

    Args:
        method: decides what the base is for it.
        group: a slice, or all models.
        base: the merge's, unless the slice has its own.
    """
    base = group.base_model or base
    if base is None or method.base == "none":
        return Inputs(group.sources)
    name = same_model(base)
    others = tuple(entry for entry in group.sources if same_model(entry.model) != name)
    listed = (entry for entry in group.sources if same_model(entry.model) == name)
    entry = next(listed, None) or ModelEntry(base)
    if method.base == "first":
        return Inputs((entry, *others))
    return Inputs(others, entry)


def count_problem(method: Method, inputs: Inputs) -> str | None:
    """What is wrong with the number of models."""
    least, most = method.models
    count = len(inputs.models)
    if least <= count <= (most or count):
        return None
    allowed = f"{least}" if most == least else f"{least} to {most or 'any number'}"
    beside = " beside the base" if inputs.base else ""
    return f"{method.name} takes {allowed} models{beside}, {count} are given"


def twice(sources: Sequence[ModelEntry]) -> list[str]:
    """The models that are listed more than once with the same layers."""
    seen: set[tuple[str, tuple[int, int] | None]] = set()
    found = []
    for entry in sources:
        key = (same_model(entry.model), entry.layer_range)
        if key in seen:
            found.append(entry.model)
        seen.add(key)
    return found
