"""How well a router knows the prompts that it was made of, each held out in turn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelglue.mixture.router_prompts import Initialise


@dataclass(frozen=True)
class Validation:
    """How a router fares on its own prompts, each held out in turn.

    Args:
        counts: [experts][experts], prompts of an expert (row) that went to each expert.
        margin: the median of (logit of the right expert − the best other).
        loss: the mean of −log p(right expert), in nats.
    """

    counts: tuple[tuple[int, ...], ...]
    margin: float
    loss: float

    @property
    def accuracy(self) -> float:
        """The fraction that went to the right expert."""
        right = sum(row[i] for i, row in enumerate(self.counts))
        return right / sum(map(sum, self.counts))


def cross_validate(
    initialise: Initialise,
    positives: Sequence[Tensor],
    negatives: Sequence[Tensor | None],
    *,
    folds: int = 5,
) -> Validation | None:
    """Make the router without a fold of the prompts, and route that fold; for every fold.

    Prompt i of an expert is in fold i mod `folds`, so the split is fixed and each fold has its
    share of every expert. With few prompts there are fewer folds.

    Returns:
        None if an expert has a single prompt, and so none to be held out, or if there is but one
        expert, and so nothing to decide.
    """
    folds = min(folds, *(len(group) for group in positives), len(positives[0]))
    if folds < 2 or len(positives) < 2:
        return None
    counts = torch.zeros(len(positives), len(positives), dtype=torch.long)
    margins, losses = [], []
    for fold in range(folds):
        kept = [_without(group, fold, folds) for group in positives]
        against = [None if group is None else _without(group, fold, folds) for group in negatives]
        router = initialise(kept, against)
        for expert, group in enumerate(positives):
            logits = router.logits(group[fold::folds])
            counts[expert] += torch.bincount(logits.argmax(dim=1), minlength=len(positives))
            others = logits.clone()
            others[:, expert] = -torch.inf
            margins.append(logits[:, expert] - others.max(dim=1).values)
            losses.append(-logits.log_softmax(dim=1)[:, expert])
    return Validation(
        counts=tuple(tuple(row) for row in counts.tolist()),
        margin=float(torch.cat(margins).median()),
        loss=float(torch.cat(losses).mean()),
    )


def _without(group: Tensor, fold: int, folds: int) -> Tensor:
    keep = torch.arange(len(group)) % folds != fold
    # A list of negatives may be shorter than the folds; an empty group has no mean.
    return group[keep] if bool(keep.any()) else group
