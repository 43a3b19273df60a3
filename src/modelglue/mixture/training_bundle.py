"""Train the router of a bundle; see `training` for how."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelglue.checkpoint.reader import Checkpoint
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.bundle import Expert, write_bundle
from modelglue.mixture.features import open_encoder
from modelglue.mixture.folder import require_absent
from modelglue.mixture.manifest import Manifest, read_manifest
from modelglue.mixture.notation import RouterKind
from modelglue.mixture.router import LinearRouter, Router, widened
from modelglue.mixture.router_file import PromptRouter, read_router
from modelglue.mixture.router_scores import NearestRouter, ScoreTable
from modelglue.mixture.training import LossTable, TableSettings, Trained, train_on_table
from modelglue.mixture.training_samples import Sample

_MOST_BYTES = 1000
"""Of one sample: a longer document gives several, each routed by itself."""


@dataclass(frozen=True)
class BundleTraining:
    """A bundle whose router was trained.

    Attributes:
        path: the new bundle.
        trained: what came of it.
    """

    path: Path
    trained: Trained

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"path": str(self.path), **told(self.trained)}


def train_bundle(
    bundle: Path,
    out: Path,
    data: Sequence[Sample] | ScoreTable,
    *,
    router: RouterKind | None = None,
    settings: TableSettings | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> BundleTraining:
    """Write a bundle with the same experts and a trained router; the given one stays as it is.

    Args:
        out: the new bundle; whole or not at all.
        data: texts, on which every expert's loss is computed, one expert in memory at a time; or
            scores that are known, for which no expert is opened.
        router: the kind to train; by default that of the bundle, and linear for one by neighbours.
        progress: is told what is done.

    Raises:
        OutputExists: `out` is taken.
        MixtureError: the bundle is damaged.
        InputError: too few samples.
        EvaluationError: an expert gave NaN, or a sample does not fit into its context.
    """
    require_absent(out)
    settings = settings or TableSettings()
    manifest = read_manifest(bundle)
    feature = manifest.feature
    encoder = open_encoder(bundle / manifest.experts[manifest.encoder].path, feature, device=device)
    before = read_router(
        bundle,
        manifest.router_kind,
        experts=len(manifest.experts),
        features=encoder.hidden_size,
    )
    start = _trainable(before, router, seed=settings.seed)
    if isinstance(data, ScoreTable):
        texts, losses, unit = list(data.texts), -data.scores.double(), "-score"
        documents = texts
    else:
        samples, documents = _cut(data, bundle, manifest)
        texts, unit = [sample.routed_on for sample in samples], "nats a byte"
        losses = sample_losses(bundle, manifest, samples, device=device, progress=progress)
    table = LossTable(texts, encoder.features(texts), losses, unit, documents)
    trained = train_on_table(start, table, before=before, top_k=manifest.top_k, settings=settings)
    write_bundle(
        out,
        [Expert(entry.name, bundle / entry.path, entry.reason) for entry in manifest.experts],
        trained.router,
        encoder=manifest.encoder,
        feature=feature,
        top_k=manifest.top_k,
        details={**_details(manifest, before, trained), "training": told(trained)},
    )
    return BundleTraining(out, trained)


def sample_losses(
    bundle: Path,
    manifest: Manifest,
    samples: Sequence[Sample],
    *,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Tensor:
    """Every expert's loss on every sample, in nats a byte, [samples, experts].

    By the byte, since experts may differ in their tokenizers. Experts are loaded one at a time.
    """
    contexts = [sample.prompt for sample in samples]
    continuations = [[sample.text] for sample in samples]
    columns = []
    for entry in manifest.experts:
        if progress is not None:
            progress(f"{len(samples)} samples scored by {entry.name}")
        model = HuggingFaceModel.load(bundle / entry.path, device=device)
        found = model.loglikelihoods(contexts, continuations)
        columns.append([-one[0].total / max(1, one[0].bytes) for one in found])
        del model  # before the next one is loaded
    return torch.tensor(columns, dtype=torch.double).T


def told(trained: Trained) -> dict[str, Any]:
    """What is written of a training, as a JSON object."""
    return {
        "kept": trained.kept,
        "steps": trained.steps,
        "single": trained.single,
        "oracle": trained.oracle,
        **trained.report.to_json(),
    }


def _details(manifest: Manifest, before: PromptRouter, trained: Trained) -> dict[str, Any]:
    """What was said of the router, as far as it still holds."""
    if not trained.kept:
        return dict(manifest.router)
    # Scored items are no linear router's.
    gone = ("items", "examples") if isinstance(before, NearestRouter) else ()
    return {
        **{key: value for key, value in manifest.router.items() if key not in gone},
        "shrinkage": None,
        "validation": None,
        "condition": _finite(trained.router.condition),
    }


def _trainable(router: PromptRouter, kind: RouterKind | None, *, seed: int) -> Router:
    """The router to start from, of the kind that is asked for."""
    start = router.fitted() if isinstance(router, NearestRouter) else router
    if kind == "mlp" and isinstance(start, LinearRouter):
        return widened(start, seed=seed)
    return start


def _cut(
    data: Sequence[Sample], bundle: Path, manifest: Manifest
) -> tuple[list[Sample], list[str]]:
    """Documents cut so that every expert can read them; prompts with completions as they are.

    Returns:
        The samples, and the document that each is of.
    """
    room = min([_MOST_BYTES, *(_context(bundle / entry.path) - 1 for entry in manifest.experts)])
    cut = []
    for sample in data:
        if sample.prompt:
            cut.append((sample, sample.routed_on))
        else:
            pieces = _pieces(sample.text, max(1, room))
            cut += [(Sample(piece), sample.text) for piece in pieces]
    kept = [(sample, document) for sample, document in cut if sample.text.strip()]
    return [sample for sample, _ in kept], [document for _, document in kept]


def _pieces(text: str, room: int) -> list[str]:
    """A text in pieces of so many bytes at most (a token has one at least), no character parted."""
    pieces, size = [""], 0
    for character in text:
        size += len(character.encode())
        if size > room and pieces[-1]:
            pieces.append("")
            size = len(character.encode())
        pieces[-1] += character
    return pieces


def _context(folder: Path) -> int:
    with Checkpoint.open(folder) as checkpoint:
        config: Mapping[str, Any] = checkpoint.config
    text = config.get("text_config") or config
    known = (text.get(key) for key in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((int(length) for length in known if isinstance(length, int)), 1 << 30)


def _finite(number: float) -> float | None:
    return number if number < float("inf") else None  # JSON has no infinity
