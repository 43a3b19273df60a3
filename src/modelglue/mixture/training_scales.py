"""How large a step of each router should be, and how sure a router may be that is to learn.

Hidden states of one layer may be a hundred times those of another, and closed forms scale their
weights to match; a learning rate for all of them would leave some as they are and tear others
apart. So each layer of a router gets the rate divided by the spread of what it sees and by the root
of its width: a step then changes all logits alike.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modelglue.mixture.training_rows import Row, batch_of, takes_routing_mask

_ROWS = 32
_SURE = 2.0
"""Logits between the first and the second expert, above which little gradient is left."""


def router_of(parameter: str) -> str:
    """The module that a router's parameter belongs to: `….router`, or a stock class's `….gate`."""
    head, found, _ = parameter.partition(".router.")
    return f"{head}.router" if found else parameter.rpartition(".")[0]


def calm(module: Any, routers: Mapping[str, nn.Parameter], rows: Sequence[Row]) -> dict[str, float]:
    """Make routers unsure enough to learn, and say by what to multiply the learning rate.

    Logits are divided by a number, so the order of the experts stays; where one expert answers,
    nothing changes at all.

    Args:
        module: the mixture.
        routers: the routers' parameters, by name; changed in place.
        rows: some of what will be trained on.

    Returns:
        For each parameter the factor of its rate.
    """
    seen = _seen(module, {router_of(name) for name in routers}, rows[:_ROWS])
    rates = {}
    for name, parameter in routers.items():
        own = seen[router_of(name)]
        last = not name.endswith((".0.weight", ".0.bias"))
        if last:
            with torch.no_grad():
                parameter.mul_(min(1.0, _SURE / max(own.margin, 1e-12)))
        inputs = own.hidden if last and own.hidden.count else own.features
        rates[name] = inputs.width**-0.5
        if name.endswith("weight"):
            rates[name] /= inputs.spread
    return rates


@contextmanager
def exploring(module: Any, routers: Iterable[str]) -> Iterator[None]:
    """Let experts be drawn by their probability, where else the likeliest would always answer.

    Who never answers is never found to be better. Gumbel noise on the logits makes the likeliest a
    draw from their softmax; with the gradient that our modelling file lets through that is the
    straight-through Gumbel-softmax (Jang et al., arXiv 1611.01144).

    Args:
        routers: the names of their parameters.
    """

    def noisy(_module: nn.Module, _inputs: Any, logits: Tensor) -> Tensor:
        uniform = torch.rand(logits.shape, device=logits.device).clamp(1e-9, 1 - 1e-7)
        return logits - (-uniform.log()).log().to(logits.dtype)

    handles = [
        module.get_submodule(name).register_forward_hook(noisy)
        for name in sorted({router_of(name) for name in routers})
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Moments:
    """Sums over rows of features, and of their squares."""

    count: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, features: Tensor) -> None:
        rows = features.detach().reshape(-1, features.shape[-1]).double().cpu()
        self.count += len(rows)
        self.sums = self.sums + rows.sum(dim=0)
        self.squares = self.squares + rows.square().sum(dim=0)

    @property
    def width(self) -> int:
        return len(self.sums)

    @property
    def spread(self) -> float:
        """The root of the mean variance of a feature; 1 where nothing varies."""
        mean = self.sums / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(0).mean()
        return float(variance.sqrt()) or 1.0


@dataclass
class _Seen:
    """What one router saw and said."""

    features: _Moments = field(default_factory=_Moments)
    hidden: _Moments = field(default_factory=_Moments)
    margins: list[Tensor] = field(default_factory=list)

    @property
    def margin(self) -> float:
        """The median of the logits between the first and the second expert."""
        return float(torch.cat(self.margins).median()) if self.margins else 0.0


@torch.inference_mode()
def _seen(module: Any, names: set[str], rows: Sequence[Row]) -> dict[str, _Seen]:
    """Read rows one by one, so that there is no padding, with hooks on the routers."""
    seen = {name: _Seen() for name in names}
    handles = []
    for name in names:
        router = module.get_submodule(name)

        def keep(
            part: nn.Module, inputs: tuple[Any, ...], output: Any, own: _Seen = seen[name]
        ) -> None:
            logits = output[0] if isinstance(output, tuple) else output
            own.features.add(inputs[0])
            if isinstance(part, nn.Sequential):
                own.hidden.add(part[1](part[0](inputs[0])))
            if logits.shape[-1] > 1:
                top = logits.detach().float().reshape(-1, logits.shape[-1]).topk(2).values
                own.margins.append((top[:, 0] - top[:, 1]).cpu())

        handles.append(router.register_forward_hook(keep))
    takes_mask = takes_routing_mask(module)
    try:
        for row in rows:
            batch = batch_of([row], routing_mask=takes_mask)
            batch = {name: tensor.to(module.device) for name, tensor in batch.items()}
            del batch["labels"]
            module(**batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen
