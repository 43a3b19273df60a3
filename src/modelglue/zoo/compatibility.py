"""Why two models cannot be merged, in words.

A merge adds up weights entry by entry, so the entries have to mean the same in both models: same
architecture, same shapes, same tokens at the same rows of the embedding, and the same settings
under which the weights were trained (heads, rotary positions, activation). What is checked is
what the folder says; whether the weights are alike is `similarity`'s question.
"""

from modelglue.checkpoint.naming import head_and_embedding, place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.settings import architecture_differences, setting_differences, shown
from modelglue.checkpoint.tokenizer import same_vocabulary


def incompatibility(
    a: Checkpoint, b: Checkpoint, *, names: tuple[str, str] | None = None
) -> str | None:
    """Why two models cannot be merged; None if they can.

    Checked in this order, and the first reason is given: architecture, number of layers, shapes,
    vocabulary, settings.

    Args:
        a: one model.
        b: the other.
        names: what to call them; by default their folders' names.

    Raises:
        CorruptCheckpoint: a configuration's rotary positions cannot be understood.
    """
    names = names or (a.name, b.name)
    return (
        _architecture(a, b)
        or _layers(a, b)
        or _tensors(a, b, names)
        or _vocabulary(a, b)
        or _embeddings(a, b, names)
        or _settings(a, b, names)
    )


def _architecture(a: Checkpoint, b: Checkpoint) -> str | None:
    for difference in architecture_differences(a.config, b.config):
        return f"architecture: {shown(difference.ours)} vs {shown(difference.theirs)}"
    return None


def _layers(a: Checkpoint, b: Checkpoint) -> str | None:
    ours, theirs = (_layer_count(model) for model in (a, b))
    return None if ours == theirs else f"shape: {ours} layers vs {theirs}"


def _layer_count(model: Checkpoint) -> int:
    layers = [layer for name in model.tensors if (layer := place(name).layer) is not None]
    return max(layers, default=-1) + 1


def _tensors(a: Checkpoint, b: Checkpoint, names: tuple[str, str]) -> str | None:
    """The first tensor that one lacks or that has another shape; embeddings come later."""
    apart = _of_vocabulary(a, b)
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        if name in apart:
            continue
        if name not in a.tensors:
            return f"shape: {names[0]} has no {name} ({_shape(b, name)} in {names[1]})"
        if name not in b.tensors:
            return f"shape: {names[1]} has no {name} ({_shape(a, name)} in {names[0]})"
        if a.tensors[name].shape != b.tensors[name].shape:
            return _differs(a, b, names, name)
    return None


def _vocabulary(a: Checkpoint, b: Checkpoint) -> str | None:
    reason = same_vocabulary(a, b)
    return None if reason is None else f"vocabulary: {reason}"


def _embeddings(a: Checkpoint, b: Checkpoint, names: tuple[str, str]) -> str | None:
    """Embeddings and heads, whose rows are tokens: padded differently, or tied in one only."""
    apart = _of_vocabulary(a, b)
    for name in sorted(a.tensors.keys() & b.tensors.keys()):
        if name in apart and a.tensors[name].shape != b.tensors[name].shape:
            return _differs(a, b, names, name)
    if a.tied != b.tied:
        tied, free = names if a.tied else names[::-1]
        return f"shape: the head of {tied} is tied to its embedding, that of {free} is its own"
    return None


def _of_vocabulary(a: Checkpoint, b: Checkpoint) -> set[str | None]:
    """The heads and embeddings of both."""
    return {*head_and_embedding(a.tensors), *head_and_embedding(b.tensors)}


def _differs(a: Checkpoint, b: Checkpoint, names: tuple[str, str], name: str) -> str:
    return f"shape: {name} is {_shape(a, name)} in {names[0]}, {_shape(b, name)} in {names[1]}"


def _shape(model: Checkpoint, name: str) -> str:
    return str(list(model.tensors[name].shape))


def _settings(a: Checkpoint, b: Checkpoint, names: tuple[str, str]) -> str | None:
    """Settings without a tensor of their own that change what the weights mean."""
    for found in setting_differences(a, b):
        ours, theirs = shown(found.ours), shown(found.theirs)
        return f"{found.what}: {ours} in {names[0]}, {theirs} in {names[1]}"
    return None
