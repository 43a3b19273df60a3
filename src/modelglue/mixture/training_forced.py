"""Train the one router of a checkpoint whose layers are all chosen at once (model level).

What each expert would lose on a text is found by forcing the route, and the router is fitted to
that table as a bundle's is; see `training`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from modelglue.mixture.router import from_tensors
from modelglue.mixture.training import TableSettings, fit_router
from modelglue.mixture.training_rows import Row, losses
from modelglue.mixture.training_scales import router_of

if TYPE_CHECKING:
    from modelglue.mixture.training_layers import LayerSettings

_FORCED = 1e4


def is_model_level(module: Any) -> bool:
    """Whether one router decides for all layers."""
    kind = (getattr(module.config, "modelglue", None) or {}).get("kind") or {}
    return kind.get("level") == "model"


def fit_by_table(
    module: Any,
    routers: Mapping[str, nn.Parameter],
    fit: Sequence[Row],
    stop: Sequence[Row],
    settings: "LayerSettings",
) -> None:
    """Fit the router in place.

    Args:
        routers: the parameters of the one router, by name.
        fit: rows to train on.
        stop: rows that say when to stop.
    """
    (name,) = {router_of(parameter) for parameter in routers}
    tensors = {key.removeprefix(f"{name}."): tensor for key, tensor in routers.items()}
    start = from_tensors({key: tensor.detach().cpu() for key, tensor in tensors.items()})
    table, held_out = (forced_losses(module, name, rows, settings.rows) for rows in (fit, stop))
    chosen = TableSettings(balance=settings.balance, seed=settings.seed)
    found, _ = fit_router(start, table, held_out, chosen)
    with torch.no_grad():
        for key, tensor in found.tensors().items():
            tensors[key].copy_(tensor)


def forced_losses(
    module: Any, router: str, rows: Sequence[Row], at_once: int
) -> tuple[Tensor, Tensor]:
    """What the router sees of each row, and what each expert loses on it if it must answer.

    Args:
        router: the name of its module.

    Returns:
        [rows, features], and [rows, experts] in nats a token.
    """
    seen: list[Tensor] = []
    forced = 0

    def force(_module: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
        if forced == 0:
            seen.append(inputs[0].detach().float().cpu())
        other = torch.zeros_like(logits)
        other[:, forced] = _FORCED
        return other

    handle = module.get_submodule(router).register_forward_hook(force)
    columns = []
    try:
        for expert in range(len(module.config.modelglue["experts"])):
            forced = expert
            columns.append(losses(module, rows, at_once))
    finally:
        handle.remove()
    counts = torch.tensor([row.counted for row in rows], dtype=torch.double)
    return torch.cat(seen), torch.from_numpy(np.stack(columns, axis=1)) / counts[:, None]
