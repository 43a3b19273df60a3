"""What the models' configurations say, compared: weights of one shape may mean different things."""

import contextlib
from collections.abc import Iterable

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.settings import (
    Difference,
    architecture_differences,
    further_differences,
    setting_differences,
    shown,
)
from modelglue.errors import CorruptCheckpoint

CRIME = (
    "Entries of the same tensors mean different things then; leave one of the models out, or allow "
    "it with --allow-crimes (in Python allow_crimes=True)."
)
"""What to do about a setting that changes the meaning of entries."""


def compared(
    models: Iterable[Checkpoint], template: Checkpoint
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where models differ from the one that gives the output its configuration.

    Returns:
        (what changes the meaning of entries, what else differs), a sentence a model.
    """
    crimes: dict[str, None] = {}
    others: dict[str, None] = {}
    for model in models:
        if model is template:
            continue
        found = [
            *architecture_differences(template.config, model.config),
            *further_differences(template, model),
        ]
        with contextlib.suppress(CorruptCheckpoint):  # then there is nothing to compare
            found += setting_differences(template, model)
        for told, of_entries in ((crimes, True), (others, False)):
            alike = [one for one in found if one.of_entries == of_entries]
            if alike:
                told["; ".join(_told(one, template, model) for one in alike)] = None
    return tuple(crimes), tuple(others)


def _told(difference: Difference, template: Checkpoint, model: Checkpoint) -> str:
    ours, theirs = shown(difference.ours), shown(difference.theirs)
    return f"{difference.key}: {ours} in {template.name}, {theirs} in {model.name}"
