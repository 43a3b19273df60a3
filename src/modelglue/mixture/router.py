"""Routers: from the feature of a prompt (or a state of a token) to a logit for every expert.

    linear   ⟨wₑ, x⟩ + bₑ
    mlp      ⟨vₑ, max(0, W x + b)⟩ + cₑ

Whoever makes, trains, stores or asks a router needs `logits`, `tensors`, `directions` and
`condition` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modelglue.errors import MixtureError


@dataclass(frozen=True)
class LinearRouter:
    """Logits linear in a prompt's feature, one row an expert.

    Args:
        weight: [experts, features].
        bias: [experts].
        shrinkage: how far the covariance was shrunk to a sphere (0 … 1), where one was used.
    """

    weight: Tensor
    bias: Tensor
    shrinkage: float | None = None

    @property
    def experts(self) -> int:
        """How many it decides among."""
        return len(self.weight)

    @property
    def features(self) -> int:
        """The width of what it sees."""
        return self.weight.shape[1]

    def logits(self, features: Tensor) -> Tensor:
        """[prompts, features] → [prompts, experts], in fp64: no tie by rounding."""
        return features.double() @ self.weight.double().T + self.bias.double()

    def probabilities(self, features: Tensor) -> Tensor:
        """The softmax of the logits, [prompts, experts]."""
        return self.logits(features).softmax(dim=-1)

    @property
    def condition(self) -> float:
        """How unevenly the weights tell the experts apart: 1 is best, ∞ means two look the same.

        The ratio of the largest to the smallest singular value of the weights after their mean
        row is removed; that row adds the same to every logit and so decides nothing, which leaves
        experts − 1 directions.
        """
        return condition(self.directions)

    @property
    def directions(self) -> Tensor:
        """What `condition` is of, [experts, features]: along what an expert's logit grows."""
        return self.weight

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the names that an `nn.Linear` has."""
        return {"weight": self.weight, "bias": self.bias}


@dataclass(frozen=True)
class MLPRouter:
    """Two linear layers with ReLU between them.

    Args:
        weight1: [hidden, features].
        bias1: [hidden].
        weight2: [experts, hidden].
        bias2: [experts].
        shrinkage: of the linear router that it began as; see there.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    shrinkage: float | None = None

    @property
    def experts(self) -> int:
        """How many it decides among."""
        return len(self.weight2)

    @property
    def features(self) -> int:
        """The width of what it sees."""
        return self.weight1.shape[1]

    def logits(self, features: Tensor) -> Tensor:
        """[prompts, features] → [prompts, experts], in fp64: no tie by rounding."""
        hidden = features.double() @ self.weight1.double().T + self.bias1.double()
        return hidden.clamp_min(0) @ self.weight2.double().T + self.bias2.double()

    def probabilities(self, features: Tensor) -> Tensor:
        """The softmax of the logits, [prompts, experts]."""
        return self.logits(features).softmax(dim=-1)

    @property
    def condition(self) -> float:
        """That of the product of the two layers, which is the router with every unit open."""
        return condition(self.directions)

    @property
    def directions(self) -> Tensor:
        """[experts, features]; see `condition`."""
        return self.weight2.double() @ self.weight1.double()

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the names that `nn.Sequential(Linear, ReLU, Linear)` has."""
        return {
            "0.weight": self.weight1,
            "0.bias": self.bias1,
            "2.weight": self.weight2,
            "2.bias": self.bias2,
        }


Router = LinearRouter | MLPRouter

HIDDEN = 64
"""Units of an MLP router, unless twice the experts are more."""


def from_tensors(tensors: Mapping[str, Tensor]) -> Router:
    """The router whose `tensors()` these are.

    Raises:
        MixtureError: they are no router's, or do not fit together.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = set(shapes)
    if names == {"weight", "bias"} and len(shapes["weight"]) == 2:
        if shapes["bias"] == shapes["weight"][:1]:
            return LinearRouter(tensors["weight"], tensors["bias"])
    elif names == {"0.weight", "0.bias", "2.weight", "2.bias"}:
        first, second = shapes["0.weight"], shapes["2.weight"]
        fits = len(first) == len(second) == 2 and first[0] == second[1]
        if fits and (shapes["0.bias"], shapes["2.bias"]) == (first[:1], second[:1]):
            return MLPRouter(
                tensors["0.weight"], tensors["0.bias"], tensors["2.weight"], tensors["2.bias"]
            )
    raise MixtureError(f"these are no router's tensors: {shapes}")


def widened(linear: LinearRouter, *, hidden: int | None = None, seed: int = 0) -> MLPRouter:
    """The MLP router with the logits of a linear one, for all features.

    Each logit z passes as max(0, z) − max(0, −z), which takes two units an expert. Further units
    look in random directions (as long as the mean row of the weights) and are not listened to
    until training gives them a weight.

    Args:
        hidden: units; by default `HIDDEN`, or twice the experts if that is more.
        seed: for the further units.

    Raises:
        MixtureError: fewer units than two an expert.
    """
    experts, features = linear.weight.shape
    hidden = max(HIDDEN, 2 * experts) if hidden is None else hidden
    more = hidden - 2 * experts
    if more < 0:
        raise MixtureError(f"an MLP router over {experts} experts needs {2 * experts} hidden units")
    weight, bias = linear.weight.float(), linear.bias.float()
    generator = torch.Generator().manual_seed(seed)
    length = weight.norm(dim=1).mean() / features**0.5
    drawn = torch.randn(more, features, generator=generator) * length
    one = torch.eye(experts)
    return MLPRouter(
        torch.cat([weight, -weight, drawn]),
        torch.cat([bias, -bias, torch.zeros(more)]),
        torch.cat([one, -one, torch.zeros(experts, more)], dim=1),
        torch.zeros(experts),
        linear.shrinkage,
    )


def without_bias(linear: LinearRouter, features: Tensor) -> LinearRouter:
    """A linear router without bias (stock mixtures have none) whose logits are nearly the same.

    The bias goes into the weights along the δ for which ⟨δ, x⟩ is nearest to 1 over the features,
    by least squares: δ = (E[xxᵀ] + ε)⁻¹ E[x].

    Args:
        features: [samples or tokens, features], such as the router will see.
    """
    if not bool(linear.bias.any()):
        return linear
    data = features.double()
    floor = 1e-6 * float(data.square().mean()) * len(data) or 1.0
    ones = torch.ones(len(data), dtype=torch.double)
    if len(data) < data.shape[1]:
        gram = data @ data.T
        gram.diagonal().add_(floor)
        direction = data.T @ torch.linalg.solve(gram, ones)
    else:
        gram = data.T @ data
        gram.diagonal().add_(floor)
        direction = torch.linalg.solve(gram, data.T @ ones)
    weight = linear.weight.double() + linear.bias.double()[:, None] * direction
    return LinearRouter(weight.float(), torch.zeros_like(linear.bias), linear.shrinkage)


def condition(weight: Tensor) -> float:
    """See `LinearRouter.condition`.

    Args:
        weight: [experts, features].
    """
    if len(weight) == 1:
        return 1.0
    centred = weight.double() - weight.double().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    place = len(weight) - 2
    widest, narrowest = float(values[0]), float(values[place]) if place < len(values) else 0.0
    # What remains of a direction that vanished is rounding, not a condition of 10¹⁶.
    return widest / narrowest if narrowest > 1e-7 * widest else float("inf")
