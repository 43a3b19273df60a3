"""From checkpoints and prompts to a mixture on disk, without training."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from modelglue.checkpoint.source import materialise, open_checkpoint
from modelglue.errors import MixtureError
from modelglue.mixture.bundle import Expert, require_top_k, write_bundle
from modelglue.mixture.conditions import as_json, confusions
from modelglue.mixture.features import Encoder, Feature, open_encoder
from modelglue.mixture.folder import require_absent
from modelglue.mixture.notation import MixtureKind, impossible
from modelglue.mixture.router import widened
from modelglue.mixture.router_file import PromptRouter
from modelglue.mixture.router_prompts import feature_scale, from_prompts, initialiser
from modelglue.mixture.router_scores import (
    ItemValidation,
    ScoreTable,
    nearest_items,
    validate_on_items,
)
from modelglue.mixture.router_validation import Validation, cross_validate
from modelglue.registry import nearest

NEIGHBOURS = "knn"
"""The initialisation that goes by scored items instead of prompts; see `router_scores`."""
_EXAMPLES = 5
_EXAMPLE_LENGTH = 200


@dataclass(frozen=True)
class MixtureSummary:
    """What was made, and how well the router knows its own prompts.

    Args:
        experts: in the order of the bundle.
        encoder: the expert whose `feature` the router sees.
        shrinkage: of the covariance (0 … 1), by Ledoit and Wolf's formula from the prompts alone;
            None where no covariance is used.
        condition: of the router's weights, of several the worst; see `LinearRouter.condition`.
        validation: on the prompts themselves, each held out in turn; None where there is nothing
            to hold out.
        kind: level, router and how many experts answer together.
        items: the same on scored items, where the router was made of such.
        form: what was written: "bundle", or the checkpoint's model type.
        not_stock: why it is no stock class, where it is a checkpoint and none.
        conditions: of each router, from the first mixed layer on.
        confusions: which experts routers cannot tell apart, in words.
        stored, active: parameters in the checkpoint, and those at work at a time (the mean, where
            experts differ in size); None of a bundle, which says so itself.
    """

    path: Path
    experts: tuple[str, ...]
    encoder: str
    feature: Feature
    initialisation: str
    shrinkage: float | None
    condition: float
    validation: Validation | None
    kind: MixtureKind = field(default_factory=MixtureKind)
    items: ItemValidation | None = None
    form: str = "bundle"
    not_stock: str | None = None
    conditions: tuple[float, ...] = ()
    confusions: tuple[str, ...] = ()
    stored: int | None = None
    active: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "path": str(self.path),
            "experts": list(self.experts),
            "encoder": self.encoder,
            "mixture": self.kind.to_mapping(),
            "form": self.form,
            "not_stock": self.not_stock,
            **_details(self),
            "conditions": as_json(self.conditions),
            "confusions": list(self.confusions),
        }


def mix(
    experts: Mapping[str, str | Path],
    prompts: Mapping[str, Iterable[str]],
    out: str | Path,
    *,
    kind: MixtureKind | None = None,
    negatives: Mapping[str, Iterable[str]] | None = None,
    reasons: Mapping[str, str] | None = None,
    encoder: str | None = None,
    feature: Feature | None = None,
    initialisation: str = "discriminant",
    scores: ScoreTable | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> MixtureSummary:
    """Put a router over checkpoints and write both as one bundle.

    The encoder, unless named, is the expert on whose features the prompts are told apart best:
    highest accuracy by cross-validation over the prompts, then lowest loss, then the alphabet.
    Encoders are opened one at a time, each without the experts. Where the router is made of scored
    items the encoder is the one by which they go to the best experts, each left out in turn.

    Args:
        experts: name → folder, hub reference or `base+adapter`.
        prompts: name → what the expert is good at, at least one each. Repeated ones count once.
        kind: which router, and how many experts answer together; of model level.
        negatives: name → what the expert should not get, for any experts; the others' are told
            from all other experts' prompts.
        reasons: name → why it is in, noted in the bundle.
        feature: what the router sees; the mean input embedding by default.
        initialisation: a name in `router_prompts.INITIALISATIONS`; or "knn": where the experts that
            answer the nearest of the scored items best are, which needs no prompts. The items are
            kept then, in the place of a linear router; an MLP router is fitted to them.
        scores: for "knn"; experts in the order of `experts`.
        seed: for "random", and for the units of an MLP that are not used at first.

    Raises:
        MixtureError: experts and prompts don't go together, or experts are to answer together that
            share no vocabulary.
        OutputExists, OutOfSpace: as `write_bundle`.
    """
    out = Path(out)
    require_absent(out)
    kind = kind or MixtureKind()
    _check(experts, kind, initialisation, scores, encoder)
    positive = checked_prompts(experts, prompts, "prompts")
    negative = checked_prompts(experts, negatives or {}, "negatives")
    missing = [name for name in experts if name not in positive]
    if missing and scores is None:
        raise MixtureError(f"prompts: none for {', '.join(missing)}; every expert needs some")
    feature = feature or Feature()
    out.parent.mkdir(parents=True, exist_ok=True)
    # Where adapters become models; experts that are plain folders are read where they are.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        folders = {}
        for i, (name, ref) in enumerate(experts.items()):
            with open_checkpoint(ref) as checkpoint:
                folders[name] = materialise(checkpoint, Path(beside) / str(i))
        require_top_k(kind.top_k, folders)

        def fit(name: str) -> _Fit:
            eyes = open_encoder(folders[name], feature, device=device)
            if scores is not None:
                return _fit_items(name, eyes, scores, kind, seed=seed)
            given = (positive, negative)
            return _fit(name, eyes, *given, kind, initialisation=initialisation, seed=seed)

        best = min(map(fit, [encoder] if encoder else sorted(folders)), key=_Fit.rank)
        summary = MixtureSummary(
            path=out,
            experts=tuple(experts),
            encoder=best.encoder,
            feature=feature,
            initialisation=initialisation,
            shrinkage=best.router.shrinkage,
            condition=best.router.condition,
            validation=best.validation,
            kind=kind,
            items=best.items,
            conditions=(best.router.condition,),
            confusions=tuple(confusions([best.router], list(experts))),
        )
        write_bundle(
            out,
            [Expert(name, folders[name], (reasons or {}).get(name, "")) for name in experts],
            best.router,
            encoder=list(experts).index(best.encoder),
            feature=feature,
            top_k=kind.top_k,
            details={**_details(summary), "examples": best.examples},
        )
    return summary


@dataclass(frozen=True)
class _Fit:
    """A router on the features of one encoder."""

    encoder: str
    router: PromptRouter
    validation: Validation | None
    items: ItemValidation | None = None
    examples: Mapping[str, Sequence[str]] | Sequence[str] = ()

    def rank(self) -> tuple[float, float, str]:
        """Lower is better."""
        if self.items is not None:
            return -self.items.routed, 0.0, self.encoder
        if self.validation is None:
            return 0.0, 0.0, self.encoder
        return -self.validation.accuracy, self.validation.loss, self.encoder


def _fit(
    encoder: str,
    eyes: Encoder,
    positive: Mapping[str, Sequence[str]],
    negative: Mapping[str, Sequence[str]],
    kind: MixtureKind,
    *,
    initialisation: str,
    seed: int,
) -> _Fit:
    """A router over the experts that `positive` names, in its order."""
    positives = [eyes.features(texts) for texts in positive.values()]
    negatives: list[Tensor | None] = [
        eyes.features(negative[name]) if name in negative else None for name in positive
    ]
    linear = from_prompts(positives, negatives, initialisation=initialisation, seed=seed)
    return _Fit(
        encoder,
        widened(linear, seed=seed) if kind.router == "mlp" else linear,
        cross_validate(initialiser(initialisation, seed=seed), positives, negatives),
        examples={
            name: _typical(texts, features)
            for (name, texts), features in zip(positive.items(), positives, strict=True)
        },
    )


def _fit_items(
    encoder: str, eyes: Encoder, table: ScoreTable, kind: MixtureKind, *, seed: int
) -> _Fit:
    """A router by the scored items that are nearest to a prompt."""
    found = nearest_items(eyes.features(table.texts), table.scores)
    return _Fit(
        encoder,
        widened(found.fitted(), seed=seed) if kind.router == "mlp" else found,
        None,
        validate_on_items(found),
        [text[:_EXAMPLE_LENGTH] for text in table.texts],
    )


def _typical(texts: Sequence[str], features: Tensor) -> list[str]:
    """The texts whose features are nearest to their mean; `modelglue route` shows them."""
    centred = features.double() - features.double().mean(dim=0)
    distances = (centred / feature_scale(centred)).norm(dim=1)
    order = distances.argsort(stable=True)[:_EXAMPLES].tolist()
    return [texts[i][:_EXAMPLE_LENGTH] for i in order]


def _check(
    experts: Mapping[str, str | Path],
    kind: MixtureKind,
    initialisation: str,
    scores: ScoreTable | None,
    encoder: str | None,
) -> None:
    """Refuse what cannot be made, before anything is opened."""
    if not experts:
        raise MixtureError("a mixture needs at least one expert")
    if kind.level != "model" or kind.shared_layers:
        raise MixtureError(
            f"{kind.short} with {kind.shared_layers} shared layers is one checkpoint, not a bundle "
            "of experts; use `compose`"
        )
    if (reason := impossible(kind, experts=len(experts))) is not None:
        raise MixtureError(reason)
    if encoder is not None and encoder not in experts:
        raise MixtureError(f"encoder {encoder!r} is no expert{nearest(encoder, experts)}")
    if initialisation != NEIGHBOURS:
        initialiser(initialisation)
    if (initialisation == NEIGHBOURS) != (scores is not None):
        raise MixtureError(
            f"initialisation {NEIGHBOURS!r} and a table of scores belong together; "
            f"give both or none (initialisation is {initialisation!r})"
        )
    if scores is not None and scores.scores.shape[1] != len(experts):
        raise MixtureError(
            f"the table of scores has {scores.scores.shape[1]} experts of {len(experts)}"
        )


def checked_prompts(
    experts: Iterable[str], given: Mapping[str, Iterable[str]], word: str
) -> dict[str, list[str]]:
    """Each expert's texts without repetitions, in the order of the experts."""
    known = list(experts)
    for name in given:
        if name not in known:
            raise MixtureError(f"{word}: {name!r} is no expert{nearest(name, known)}")
    texts = {name: list(dict.fromkeys(given[name])) for name in known if name in given}
    for name, own in texts.items():
        if not any(text.strip() for text in own):
            raise MixtureError(f"{word}: {name!r} has none; give at least one text")
    return texts


def _details(summary: MixtureSummary) -> dict[str, Any]:
    """What `mixture.json` tells of the router; no place on this machine among it."""
    items = summary.items
    return {
        "initialisation": summary.initialisation,
        "shrinkage": summary.shrinkage,
        "condition": as_json([summary.condition])[0],
        "validation": None
        if summary.validation is None
        else {"accuracy": summary.validation.accuracy, **asdict(summary.validation)},
        **({} if items is None else {"items": asdict(items)}),
    }
