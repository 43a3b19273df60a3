"""Who can stand beside whom in a mixture, told from headers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from modelglue.errors import MixtureError
from modelglue.mixture.compose import stock_form
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.surgery import check_layers
from modelglue.mixture.together import vocabularies_differ


def fitting(folders: Mapping[str, Path], kind: MixtureKind) -> dict[str, str | None]:
    """Who can be an expert beside the first of them: None, or why not; no weight is read.

    Args:
        folders: name → its checkpoint, or one of the same architecture and vocabulary.
        kind: of the mixture, whose `top_k` is bounded by its experts later.
    """
    (first, own), *others = folders.items()
    if is_bundle(kind):
        alike = kind.top_k > 1
        return {first: None} | {
            name: vocabularies_differ({first: own, name: folder}) if alike else None
            for name, folder in others
        }
    single = replace(kind, top_k=1)
    pairs = {name: {first: own, name: folder} for name, folder in others}
    stock = {name: _not_stock(pair, own, single) for name, pair in pairs.items()}
    if not any(stock.values()):
        return {first: None, **stock}
    layers = {name: _not_layers(pair, own, single) for name, pair in pairs.items()}
    # All experts of a mixture stand in one form: that which holds more of them.
    best = max(layers, stock, key=lambda form: sum(reason is None for reason in form.values()))
    return {first: None, **best}


def misfit(experts: Mapping[str, Path], dense: Path, kind: MixtureKind) -> str | None:
    """Why models cannot be mixed inside of one checkpoint, in whatever form; None if they can."""
    if _not_stock(experts, dense, kind) is None:
        return None
    return _not_layers(experts, dense, kind)


def _not_stock(experts: Mapping[str, Path], dense: Path, kind: MixtureKind) -> str | None:
    try:
        found = stock_form(experts, dense, kind)
    except MixtureError as error:
        return str(error)
    return found if isinstance(found, str) else None


def _not_layers(experts: Mapping[str, Path], dense: Path, kind: MixtureKind) -> str | None:
    try:
        check_layers(experts, dense, kind=kind)
    except MixtureError as error:
        return str(error)
    return None


def is_bundle(kind: MixtureKind) -> bool:
    """Whether a mixture is whole models side by side."""
    return kind.level == "model" and kind.shared_layers == 0
