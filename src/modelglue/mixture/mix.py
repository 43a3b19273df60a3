"""From checkpoints and prompts to a mixture on disk, without training."""

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from modelglue.checkpoint.source import materialise, open_checkpoint
from modelglue.errors import MixtureError, UnknownName
from modelglue.mixture.bundle import Expert, write_bundle
from modelglue.mixture.features import Feature, open_encoder
from modelglue.mixture.folder import require_absent
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.router_prompts import INITIALISATIONS, from_prompts
from modelglue.mixture.router_validation import Validation, cross_validate
from modelglue.registry import nearest


@dataclass(frozen=True)
class MixtureSummary:
    """What was made, and how well the router knows its own prompts.

    Args:
        experts: in the order of the bundle.
        encoder: the expert whose `feature` the router sees.
        shrinkage: of the covariance (0 … 1), by Ledoit and Wolf's formula from the prompts alone;
            None where no covariance is used.
        condition: of the router's weights; see `LinearRouter.condition`.
        validation: on the prompts themselves, each held out in turn; None where there is nothing
            to hold out.
    """

    path: Path
    experts: tuple[str, ...]
    encoder: str
    feature: Feature
    initialisation: str
    shrinkage: float | None
    condition: float
    validation: Validation | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "path": str(self.path),
            "experts": list(self.experts),
            "encoder": self.encoder,
            **_details(self),
        }


def mix(
    experts: Mapping[str, str | Path],
    prompts: Mapping[str, Iterable[str]],
    out: str | Path,
    *,
    negatives: Mapping[str, Iterable[str]] | None = None,
    reasons: Mapping[str, str] | None = None,
    encoder: str | None = None,
    feature: Feature | None = None,
    initialisation: str = "discriminant",
    device: str = "cpu",
) -> MixtureSummary:
    """Put a router over checkpoints and write both as one bundle.

    The encoder, unless named, is the expert on whose features the prompts are told apart best:
    highest accuracy by cross-validation over the prompts, then lowest loss, then the alphabet.
    Encoders are opened one at a time, each without the experts.

    Args:
        experts: name → folder, hub reference or `base+adapter`.
        prompts: name → what the expert is good at, at least one each. Repeated ones count once.
        negatives: name → what the expert should not get, for any experts; the others' are told
            from all other experts' prompts.
        reasons: name → why it is in, noted in the bundle.
        feature: what the router sees; the mean input embedding by default.
        initialisation: "discriminant" or "mean_difference", see `router`.

    Raises:
        MixtureError: experts and prompts don't go together.
        OutputExists, OutOfSpace: as `write_bundle`.
    """
    out = Path(out)
    require_absent(out)
    if initialisation not in INITIALISATIONS:
        raise UnknownName(
            f"there is no router initialisation {initialisation!r}"
            f"{nearest(initialisation, INITIALISATIONS)}. Known: {', '.join(INITIALISATIONS)}."
        )
    positive = _checked_prompts(experts, prompts, "prompts")
    negative = _checked_prompts(experts, negatives or {}, "negatives")
    if not experts:
        raise MixtureError("a mixture needs at least one expert")
    if missing := [name for name in experts if name not in positive]:
        raise MixtureError(f"prompts: none for {', '.join(missing)}; every expert needs some")
    if encoder is not None and encoder not in experts:
        raise MixtureError(f"encoder {encoder!r} is no expert{nearest(encoder, experts)}")
    feature = feature or Feature()
    out.parent.mkdir(parents=True, exist_ok=True)
    # Where adapters become models; experts that are plain folders are read where they are.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        folders = {}
        for i, (name, ref) in enumerate(experts.items()):
            with open_checkpoint(ref) as checkpoint:
                folders[name] = materialise(checkpoint, Path(beside) / str(i))
        candidates = [
            _fit(
                name,
                folders[name],
                feature,
                positive,
                negative,
                initialisation=initialisation,
                device=device,
            )
            for name in ([encoder] if encoder else sorted(folders))
        ]
        best = min(candidates, key=_Fit.rank)
        summary = MixtureSummary(
            path=out,
            experts=tuple(experts),
            encoder=best.encoder,
            feature=feature,
            initialisation=initialisation,
            shrinkage=best.router.shrinkage,
            condition=best.router.condition,
            validation=best.validation,
        )
        write_bundle(
            out,
            [Expert(name, folders[name], (reasons or {}).get(name, "")) for name in experts],
            best.router,
            encoder=list(experts).index(best.encoder),
            feature=feature,
            details=_details(summary),
        )
    return summary


@dataclass(frozen=True)
class _Fit:
    """A router on the features of one encoder."""

    encoder: str
    router: LinearRouter
    validation: Validation | None

    def rank(self) -> tuple[float, float, str]:
        """Lower is better."""
        if self.validation is None:
            return 0.0, 0.0, self.encoder
        return -self.validation.accuracy, self.validation.loss, self.encoder


def _fit(
    encoder: str,
    folder: Path,
    feature: Feature,
    positive: Mapping[str, Sequence[str]],
    negative: Mapping[str, Sequence[str]],
    *,
    initialisation: str,
    device: str,
) -> _Fit:
    """A router over the experts that `positive` names, in its order."""
    eyes = open_encoder(folder, feature, device=device)
    positives = [eyes.features(texts) for texts in positive.values()]
    negatives: list[Tensor | None] = [
        eyes.features(negative[name]) if name in negative else None for name in positive
    ]
    return _Fit(
        encoder,
        from_prompts(positives, negatives, initialisation=initialisation),
        cross_validate(INITIALISATIONS[initialisation], positives, negatives),
    )


def _checked_prompts(
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
    return {
        "initialisation": summary.initialisation,
        "shrinkage": summary.shrinkage,
        # JSON has no infinity.
        "condition": summary.condition if math.isfinite(summary.condition) else None,
        "validation": None
        if summary.validation is None
        else {"accuracy": summary.validation.accuracy, **asdict(summary.validation)},
    }
