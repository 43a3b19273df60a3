"""How well routers tell their experts apart: for `config.json`, cards and whoever made them."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from modelglue.mixture.router_file import PromptRouter


def as_json(conditions: Sequence[float]) -> list[float | None]:
    """The same; JSON has no infinity, and None stands for it."""
    return [one if math.isfinite(one) else None for one in conditions]


def shown(conditions: Sequence[float]) -> str:
    """From the best to the worst.

    >>> shown([4.25, 1.5, float("inf")])
    '1.5 to ∞ (1 is best)'
    """
    ends = (f"{one:.3g}".replace("inf", "∞") for one in (min(conditions), max(conditions)))
    return f"{' to '.join(dict.fromkeys(ends))} (1 is best)"


def confusions(routers: Sequence[PromptRouter], experts: Sequence[str]) -> list[str]:
    """Which experts routers cannot tell apart, in words; nothing where every condition is finite.

    Args:
        experts: their names, in the order of the routers' rows.
    """
    groups = Counter(
        group
        for router in routers
        if math.isinf(router.condition)
        for group in confused(router.directions)
    )
    which = "the router" if len(routers) == 1 else f"{{}} of {len(routers)} routers"
    return [
        f"{which.format(times)} cannot tell {', '.join(experts[i] for i in group)} apart "
        "(condition ∞): give them prompts that differ more, or leave one of them out"
        for group, times in groups.items()
    ]


def confused(weight: Tensor) -> list[tuple[int, ...]]:
    """Groups of experts whose rows, less the mean row, depend linearly on one another.

    Two with the same row do, and so do three of which one lies between the others.

    Args:
        weight: [experts, features].
    """
    count = len(weight)
    centred = weight.double() - weight.double().mean(dim=0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    told = left[:, values > 1e-7 * values.max()]
    # Onto the combinations of rows that vanish, but for that of all rows alike.
    lost = torch.eye(count, dtype=torch.double) - told @ told.T - 1 / count
    linked = (lost.abs() > 1e-6).tolist()
    groups: list[tuple[int, ...]] = []
    for expert in range(count):
        own = tuple(other for other in range(count) if linked[expert][other])
        touched = [group for group in groups if set(group) & set(own)]
        if own:
            groups = [group for group in groups if group not in touched]
            groups.append(tuple(sorted({*own, *(i for group in touched for i in group)})))
    return groups
