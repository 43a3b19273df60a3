"""Routers inside of a model, made without training from the states that they will see."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modelglue.errors import MixtureError
from modelglue.mixture.layer_features import MOST_STATES, LayerReader
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter, Router, widened, without_bias
from modelglue.mixture.router_prompts import from_prompts, initialiser
from modelglue.mixture.router_scores import ScoreTable, nearest_items


def initialise(
    dense: Path,
    kind: MixtureKind,
    prompts: Mapping[str, Sequence[str]],
    negatives: Mapping[str, Sequence[str]] | None = None,
    *,
    initialisation: str = "discriminant",
    bias: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> list[Router]:
    """A router for each mixed layer; at model level one in all.

    The feature is that of `layer_features`, so a router begins on what it will see at run time. Of
    an MLP the logits are at first those of the linear router. How well each tells the experts apart
    is its `condition`.

    Args:
        dense: the model whose states the routers will see.
        prompts: expert → texts, in the order of the experts.
        negatives: expert → texts that it should not get, for any of them.
        initialisation: a name in `router_prompts.INITIALISATIONS`.
        bias: whether routers may have one; stock mixtures know none, and what it would have added
            goes into the weights as well as that can be done.
        seed: for "random", and for the units of an MLP that are not used at first.

    Raises:
        MixtureError: an expert has no text with a token, a state is not finite, or the layers can't
            be found.
        UnknownName: there is no such initialisation.
        CheckpointError: the dense model can't be loaded.
    """
    initialiser(initialisation)
    reader = LayerReader(dense, kind, device=device)
    most = MOST_STATES // max(1, len(prompts) + len(negatives or {}))
    positive = [reader.features(texts, most=most) for texts in prompts.values()]
    negative = {
        name: reader.features(texts, most=most) for name, texts in (negatives or {}).items()
    }
    routers = []
    for layer in range(reader.layers):
        groups = [features[layer] for features in positive]
        against = [negative[name][layer] if name in negative else None for name in prompts]
        linear = from_prompts(groups, against, initialisation=initialisation, seed=seed + layer)
        routers.append(_of_kind(linear, torch.cat(groups), kind, bias=bias, seed=seed + layer))
    return routers


def initialise_from_scores(
    dense: Path,
    kind: MixtureKind,
    table: ScoreTable,
    *,
    k: int | None = None,
    bias: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> list[Router]:
    """The same from a table of scores: what was right for the k nearest items, fitted.

    Where a router decides token by token it is fitted to the items' mean states; a linear router's
    logits, averaged over the tokens of an item, are then what was fitted.

    Args:
        table: items as texts, and each expert's score on each.
        k: neighbours; by default chosen layer by layer, see `nearest_items`.
    """
    reader = LayerReader(
        dense, MixtureKind(kind.level, shared_layers=kind.shared_layers), device=device
    )
    return [
        _of_kind(
            nearest_items(features, table.scores, k=k).fitted(),
            features,
            kind,
            bias=bias,
            seed=seed + layer,
        )
        for layer, features in enumerate(reader.features(table.texts))
    ]


def _of_kind(
    linear: LinearRouter, features: Tensor, kind: MixtureKind, *, bias: bool, seed: int
) -> Router:
    if kind.router == "mlp":
        if not bias:
            raise MixtureError(
                "an MLP router has biases; where there can be none use router: linear"
            )
        return widened(linear, seed=seed)
    return linear if bias else without_bias(linear, features)
