"""Routers from a table of scores, without training: what was right for the nearest items.

A search has scored every expert on the same items; nobody needs to say which prompts are whose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelglue.errors import MixtureError
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.router_prompts import feature_scale, ledoit_wolf, shrunk_solve

SHARPNESS = 10.0
"""Logits between an expert that gains all that is at stake at an item, and one that gains none."""
_MOST_NEIGHBOURS = 64
_ROWS = 1024


@dataclass(frozen=True)
class NearestRouter:
    """k nearest neighbours: the logit of an expert is its mean score on the nearest items.

    Distances are Euclidean, in units of `scale`. Items as far as the k-th nearest all count, so the
    order of the items decides nothing. It decides for whole models (a bundle); gates inside of a
    checkpoint are linear or MLPs, and `fitted` gives the nearest such.

    Args:
        items: [n, features], the features of the scored items.
        scores: [n, experts]; higher is better.
        scale: [features].
        k: how many neighbours count.
        sharpness: logits a unit of score.
    """

    items: Tensor
    scores: Tensor
    scale: Tensor
    k: int
    sharpness: float
    shrinkage: float | None = None

    @property
    def experts(self) -> int:
        """How many it decides among."""
        return self.scores.shape[1]

    @property
    def features(self) -> int:
        """The width of what it sees."""
        return self.items.shape[1]

    def logits(self, features: Tensor) -> Tensor:
        """[prompts, features] → [prompts, experts], in fp64."""
        if not len(features):
            return torch.zeros(0, self.experts, dtype=torch.double)
        parts = [
            _mean_of_nearest(self._distances(part), self.scores.double(), self.k)
            for part in torch.split(features, _ROWS)
        ]
        return torch.cat(parts) * self.sharpness

    def probabilities(self, features: Tensor) -> Tensor:
        """The softmax of the logits, [prompts, experts]."""
        return self.logits(features).softmax(dim=-1)

    def nearest(self, features: Tensor, count: int) -> Tensor:
        """The places of the nearest items, [prompts, count], nearest first."""
        return self._distances(features).argsort(dim=1, stable=True)[:, :count]

    @property
    def condition(self) -> float:
        """That of the linear router nearest to it."""
        return self.fitted().condition

    @property
    def directions(self) -> Tensor:
        """Those of the linear router nearest to it."""
        return self.fitted().directions

    def fitted(self) -> LinearRouter:
        """The linear router nearest to it over its own items, by regression.

        Predicts what this one says of each item, logits less their mean over the experts, from the
        item's feature; the covariance is shrunk as in `discriminant`.
        """
        items = self.items.double()
        logits = self.logits(items)
        aim = logits - logits.mean(dim=1, keepdim=True)
        centre, middle = items.mean(dim=0), aim.mean(dim=0)
        scale = feature_scale(items - centre)
        centred = (items - centre) / scale
        shrinkage = ledoit_wolf(centred)
        right = centred.T @ (aim - middle) / len(items)
        weight = shrunk_solve(centred, shrinkage, right).T / scale
        return LinearRouter(weight.float(), (middle - weight @ centre).float(), shrinkage)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored."""
        return {
            "items": self.items,
            "scores": self.scores,
            "scale": self.scale,
            "k": torch.tensor([self.k]),
            "sharpness": torch.tensor([self.sharpness], dtype=torch.double),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "NearestRouter":
        """The router whose `tensors()` these are.

        Raises:
            MixtureError: they are no such router's, or do not fit together.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        count, width = (*shapes.get("items", ()), 0, 0)[:2]
        experts = (*shapes.get("scores", ()), 0, 0)[1]
        wanted = {
            "items": (count, width),
            "scores": (count, experts),
            "scale": (width,),
            "k": (1,),
            "sharpness": (1,),
        }
        if shapes != wanted or not 1 <= int(tensors["k"]) <= count:
            raise MixtureError(f"these are no router's tensors: {shapes}")
        return cls(
            tensors["items"],
            tensors["scores"],
            tensors["scale"],
            int(tensors["k"]),
            float(tensors["sharpness"]),
        )

    def _distances(self, features: Tensor) -> Tensor:
        """[prompts, items]; of the differences themselves, so that an item is 0 from itself."""
        scale = self.scale.double()
        return torch.cdist(
            features.double() / scale,
            self.items.double() / scale,
            compute_mode="donot_use_mm_for_euclid_dist",
        )


def nearest_items(features: Tensor, scores: Tensor, *, k: int | None = None) -> NearestRouter:
    """A router by the k items nearest to a prompt.

    Args:
        features: [items, features].
        scores: [items, experts]; higher is better.
        k: how many count. By default that of 1, 2, 4, … 64 (a half of the items at most) with
            which items, each left out in turn, go to the experts that score best on them; of equal
            ones the largest.

    Raises:
        MixtureError: no items, scores that are not finite, or more neighbours than items.
    """
    if features.shape[0] != scores.shape[0] or not len(features):
        raise MixtureError(f"{len(scores)} rows of scores for {len(features)} items")
    if not bool(torch.isfinite(scores).all()) or not bool(torch.isfinite(features).all()):
        raise MixtureError("a score or a feature of an item is NaN or infinite")
    if k is not None and not 1 <= k <= len(features):
        raise MixtureError(f"k is {k}; it must be from 1 to {len(features)}, the number of items")
    stake = scores.double().amax(dim=1) - scores.double().amin(dim=1)
    usual = float(stake[stake > 0].mean()) if bool((stake > 0).any()) else 1.0
    centred = features.double() - features.double().mean(dim=0)
    router = NearestRouter(
        features.float(), scores.float(), feature_scale(centred).float(), 1, SHARPNESS / usual
    )
    chosen = k if k is not None else _best_k(router)
    return NearestRouter(router.items, router.scores, router.scale, chosen, router.sharpness)


def left_out(router: NearestRouter, k: int) -> Tensor:
    """What k neighbours say of each item when it is none of them: mean scores [items, experts]."""
    scores = router.scores.double()
    rows = []
    for start in range(0, len(scores), _ROWS):
        distances = router._distances(router.items[start : start + _ROWS])
        distances[torch.arange(len(distances)), torch.arange(len(distances)) + start] = torch.inf
        rows.append(_mean_of_nearest(distances, scores, k))
    return torch.cat(rows)


def _best_k(router: NearestRouter) -> int:
    """By the mean score of the experts that items go to, each left out in turn."""
    scores = router.scores.double()
    if len(scores) < 3:
        return 1
    best, best_score = 1, -torch.inf
    k = 1
    while k <= min(_MOST_NEIGHBOURS, len(scores) // 2):
        chosen = left_out(router, k).argmax(dim=1, keepdim=True)
        score = float(scores.gather(1, chosen).mean())
        if score >= best_score:
            best, best_score = k, score
        k *= 2
    return best


def _mean_of_nearest(distances: Tensor, scores: Tensor, k: int) -> Tensor:
    """[prompts, experts] from distances [prompts, items] and scores [items, experts]."""
    furthest = distances.kthvalue(k, dim=1, keepdim=True).values
    # Distances that are equal but for rounding are equal.
    counts = (distances <= furthest * (1 + 1e-9)).double()
    return counts @ scores / counts.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class ItemValidation:
    """How a router by neighbours fares on its own items, each left out in turn.

    Args:
        k: neighbours.
        items: how many there are.
        routed: the mean score of the experts that the items go to.
        single: the mean score of the best single expert.
        oracle: the mean score if each item went to the expert that is best on it.
    """

    k: int
    items: int
    routed: float
    single: float
    oracle: float


def validate_on_items(router: NearestRouter) -> ItemValidation | None:
    """See `ItemValidation`; None where there is a single item, and so none to be left out."""
    scores = router.scores.double()
    if len(scores) < 2:
        return None
    k = min(router.k, len(scores) - 1)
    chosen = left_out(router, k).argmax(dim=1, keepdim=True)
    return ItemValidation(
        k=k,
        items=len(scores),
        routed=float(scores.gather(1, chosen).mean()),
        single=float(scores.mean(dim=0).max()),
        oracle=float(scores.amax(dim=1).mean()),
    )


@dataclass(frozen=True)
class ScoreTable:
    """How every expert fared on the same texts.

    Args:
        texts: what the router would have seen.
        scores: [texts, experts]; higher is better.
    """

    texts: Sequence[str]
    scores: Tensor

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.scores) or self.scores.dim() != 2:
            raise MixtureError(
                f"a table of scores {tuple(self.scores.shape)} for {len(self.texts)} texts"
            )
