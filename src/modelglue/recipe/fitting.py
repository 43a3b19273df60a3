"""Who can stand beside whom in a mixture, told from headers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from modelglue.errors import MixtureError
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.surgery import check_layers
from modelglue.mixture.together import vocabularies_differ


def fitting(folders: Mapping[str, Path], kind: MixtureKind) -> dict[str, str | None]:
    """Who can be an expert beside the first of them: None, or why not; no weight is read.

    Args:
        folders: name → its checkpoint, or one of the same architecture and vocabulary.
        kind: of the mixture, whose `top_k` is bounded by its experts later.
    """
    single = replace(kind, top_k=1)
    (first, own), *others = folders.items()
    found: dict[str, str | None] = {first: None}
    for name, folder in others:
        pair = {first: own, name: folder}
        if not is_bundle(kind):
            found[name] = misfit(pair, own, single)
        else:
            found[name] = vocabularies_differ(pair) if kind.top_k > 1 else None
    return found


def misfit(experts: Mapping[str, Path], dense: Path, kind: MixtureKind) -> str | None:
    """Why models cannot be mixed inside of one checkpoint; None if they can."""
    try:
        check_layers(experts, dense, kind=kind)
    except MixtureError as error:
        return str(error)
    return None


def is_bundle(kind: MixtureKind) -> bool:
    """Whether a mixture is whole models side by side."""
    return kind.level == "model" and kind.shared_layers == 0
