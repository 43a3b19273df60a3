"""What goes where in a mixture, and why.

Of a bundle: the probability of every expert, and the nearest of the prompts or scored items that
the router was made of. Of a checkpoint: what every layer's router says, and which tokens go where.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelglue.errors import MixtureError
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.manifest import FILE
from modelglue.mixture.router_scores import NearestRouter
from modelglue.mixture.together import shares

NEAREST = 3
"""Prompts or items that are shown for a text."""


@dataclass(frozen=True)
class Near:
    """A prompt or item that the router was made of.

    Attributes:
        text: its beginning.
        experts: whose prompt it is: 1 for that one; or every expert's score on the item.
        similarity: cosine between its feature and the text's, both less the mean of all such.
    """

    text: str
    experts: Mapping[str, float]
    similarity: float


@dataclass(frozen=True)
class LayerRoute:
    """What one router of a checkpoint says of a text.

    Attributes:
        layer: that it stands in.
        share: how much of the text goes to each expert: of the tokens, weighted; or of the sample.
        probability: the mean that the router gives each.
    """

    layer: int
    share: Mapping[str, float]
    probability: Mapping[str, float]


@dataclass(frozen=True)
class TextRoute:
    """Where a text goes.

    Attributes:
        text: that was routed.
        share: of each expert in the answer; in a checkpoint the mean over its layers.
        probability: of each expert, likewise.
        nearest: why, in a bundle.
        layers: why, in a checkpoint.
        tokens: where routers decide token by token, each token with the experts' shares, over all
            layers.
    """

    text: str
    share: Mapping[str, float]
    probability: Mapping[str, float]
    nearest: tuple[Near, ...] = ()
    layers: tuple[LayerRoute, ...] = ()
    tokens: tuple[tuple[str, Mapping[str, float]], ...] = ()

    @property
    def expert(self) -> str:
        """The one with the largest share; ties go to the first."""
        return max(self.share, key=self.share.__getitem__)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"text": self.text, "expert": self.expert, **asdict(self)}


def inspect_routes(
    model: Path, texts: Sequence[str], *, device: str = "cpu", gpus: int = 1
) -> list[TextRoute]:
    """Where a mixture sends each text.

    Args:
        model: the folder of a bundle or of a checkpoint with routers.
        gpus: over how many to spread the latter; see `HuggingFaceModel`.

    Raises:
        MixtureError: the model is no mixture, or damaged.
        CheckpointError: it can't be loaded.
    """
    if (model / FILE).is_file():
        return _in_bundle(Bundle.load(model, device=device), texts)
    return _in_checkpoint(model, texts, device, gpus)


def _in_bundle(bundle: Bundle, texts: Sequence[str]) -> list[TextRoute]:
    named = [_named(bundle.experts, route.probabilities) for route in bundle.route(texts)]
    found = []
    for text, probability, near in zip(texts, named, _nearest(bundle, texts), strict=True):
        own = shares(list(probability.values()), bundle.top_k)
        share = dict.fromkeys(bundle.experts, 0.0)
        share |= {
            bundle.experts[expert]: weight
            for expert, weight in zip(own.experts, own.weights, strict=True)
        }
        found.append(TextRoute(text, share, probability, nearest=near))
    return found


def _nearest(bundle: Bundle, texts: Sequence[str]) -> list[tuple[Near, ...]]:
    """Of what the router was made of and the manifest tells, what is nearest to each text."""
    told, router = bundle.manifest.router.get("examples"), bundle.router
    known: list[tuple[str, dict[str, float]]] = []
    if isinstance(router, NearestRouter):
        items = router.items
        labels = told if isinstance(told, list) and len(told) == len(items) else [""] * len(items)
        known = [
            (str(text), _named(bundle.experts, scores))
            for text, scores in zip(labels, router.scores.tolist(), strict=True)
        ]
    else:
        if isinstance(told, dict):
            known = [(str(text), {str(name): 1.0}) for name, own in told.items() for text in own]
        items = bundle.features([text for text, _ in known])
    if not known:
        return [()] * len(texts)
    features = bundle.features(texts)
    centre = items.mean(dim=0)
    similarity = _cosines(features - centre, items - centre)
    if isinstance(router, NearestRouter):  # its own distances decide
        order = router.nearest(features, NEAREST)
    else:
        order = similarity.argsort(dim=1, descending=True, stable=True)[:, :NEAREST]
    return [
        tuple(Near(known[i][0], known[i][1], float(similarity[row, i])) for i in places)
        for row, places in enumerate(order.tolist())
    ]


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny
    a, b = (
        part.double() / part.double().norm(dim=1, keepdim=True).clamp_min(tiny) for part in (a, b)
    )
    return a @ b.T


def _in_checkpoint(model: Path, texts: Sequence[str], device: str, gpus: int) -> list[TextRoute]:
    from modelglue.mixture import modeling_modelglue as _registered  # noqa: F401

    loaded = HuggingFaceModel.load(model, device=device, gpus=gpus)
    config = loaded.module.config
    top_k = int(getattr(config, "num_experts_per_tok", 0) or 0)
    if not top_k:
        raise MixtureError(f"{model} is no mixture: neither a bundle nor a model with routers")
    note = getattr(config, "modelglue", None) or {}
    named, layers = note.get("experts") or [], config.get_text_config().num_hidden_layers
    # At model level the first mixed layer decides for those above it.
    first = (note.get("kind") or {}).get("shared_layers")
    return [
        _in_layers(loaded, text, named, top_k=top_k, layers=layers, first=first) for text in texts
    ]


@torch.inference_mode()
def _in_layers(
    loaded: HuggingFaceModel,
    text: str,
    named: Sequence[str],
    *,
    top_k: int,
    layers: int,
    first: int | None,
) -> TextRoute:
    (tokens,) = loaded.encoder.prompts([text], 1)
    ids = torch.tensor([tokens], device=loaded.module.device)
    outputs = loaded.module(ids, use_cache=False, output_router_logits=True)
    decisions = [
        logits.reshape(-1, logits.shape[-1]).float().cpu() for logits in outputs.router_logits
    ]
    names = [str(name) for name in named] or [str(i) for i in range(decisions[0].shape[-1])]
    weights = [_weights(logits, top_k) for logits in decisions]
    found = tuple(
        LayerRoute(
            (layers - len(decisions) if first is None else first) + place,
            _named(names, own.mean(dim=0).tolist()),
            _named(names, logits.softmax(dim=-1).mean(dim=0).tolist()),
        )
        for place, (own, logits) in enumerate(zip(weights, decisions, strict=True))
    )
    per_token: tuple[tuple[str, Mapping[str, float]], ...] = ()
    if len(decisions[0]) == len(tokens) > 1:
        mean = torch.stack(weights).mean(dim=0).tolist()
        words = [loaded.encoder.tokenizer.decode([token]) for token in tokens]
        per_token = tuple((word, _named(names, row)) for word, row in zip(words, mean, strict=True))
    return TextRoute(
        text,
        {name: sum(one.share[name] for one in found) / len(found) for name in names},
        {name: sum(one.probability[name] for one in found) / len(found) for name in names},
        layers=found,
        tokens=per_token,
    )


def _weights(logits: Tensor, top_k: int) -> Tensor:
    """[n, experts]: of each its weight in the answer."""
    top, experts = logits.softmax(dim=-1).topk(top_k, dim=-1)
    return torch.zeros_like(logits).scatter(1, experts, top / top.sum(dim=-1, keepdim=True))


def _named(names: Sequence[str], numbers: Sequence[float]) -> dict[str, float]:
    return {name: float(number) for name, number in zip(names, numbers, strict=True)}
