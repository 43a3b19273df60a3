"""A linear router, and two ways to make one from prompts without training.

A router sees the feature x of a prompt and gives expert e the logit ⟨wₑ, x⟩ + bₑ. Both
initialisations are closed forms over the features of each expert's positive prompts (what it is
good at) and negative prompts (what it should not get).
"""

from collections.abc import Callable, Sequence
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
        if len(self.weight) == 1:
            return 1.0
        centred = self.weight.double() - self.weight.double().mean(dim=0)
        values = torch.linalg.svdvals(centred)
        widest, narrowest = float(values[0]), _value_at(values, len(self.weight) - 2)
        # What remains of a direction that vanished is rounding, not a condition of 10¹⁶.
        return widest / narrowest if narrowest > 1e-7 * widest else float("inf")


Initialise = Callable[[Sequence[Tensor], Sequence[Tensor | None]], LinearRouter]


def mean_difference(
    positives: Sequence[Tensor], negatives: Sequence[Tensor | None]
) -> LinearRouter:
    """The paper's router (Model-GLUE, arXiv 2410.05357; mergekit's "hidden" gate).

    wₑ = (μₑ⁺ − μₑ⁻) / ‖μₑ⁺ − μₑ⁻‖ with the means of the positive and the negative features,
    bₑ = 0. It neglects that some features vary more than others, and that the best expert may
    lie to the side of, rather than beyond, another; `discriminant` heeds both.

    Args:
        positives: for each expert [prompts, features].
        negatives: the same; None stands for the other experts' positives.
    """
    means = [group.double().mean(dim=0) for group in positives]
    rows = []
    for i, (own, negative) in enumerate(zip(means, negatives, strict=True)):
        others = [group.double() for j, group in enumerate(positives) if j != i]
        if negative is not None:
            against = negative.double().mean(dim=0)
        else:
            against = torch.cat(others).mean(dim=0) if others else own
        difference = own - against
        rows.append(difference / difference.norm().clamp_min(torch.finfo(torch.double).tiny))
    weight = torch.stack(rows)
    return LinearRouter(weight.float(), torch.zeros(len(rows)))


def discriminant(positives: Sequence[Tensor], negatives: Sequence[Tensor | None]) -> LinearRouter:
    """Linear discriminant analysis (Fisher, 1936) with a shrunk covariance.

    The logit of expert e is the log-likelihood ratio of two Gaussians that share the covariance
    Σ, one about the expert's positive prompts, one about its negative ones:

        wₑ = Σ⁻¹(μₑ⁺ − μₑ⁻),   bₑ = −½⟨μₑ⁺ + μₑ⁻, wₑ⟩.

    An expert without negatives of its own is compared with the mean of all experts' means. That
    reference is then the same for all, and the router is exactly multi-class LDA with equal
    priors: how many prompts an expert came with does not decide who gets a prompt.

    Σ = D((1−ρ)R + ρI)D with D the features' standard deviations and R their correlations, both
    within the groups of prompts, and ρ from `ledoit_wolf`: it can be inverted with fewer prompts
    than features, and the unit that a feature is measured in changes nothing. (Shrinking the
    covariance itself to a sphere fails where a few features are far larger than the others, as in
    language models they are.) A feature that does not vary counts as if it varied like the mean
    one; where none does (one prompt an expert), Σ = I: the nearest mean.

    Args:
        positives: for each expert [prompts, features].
        negatives: the same; None stands for the common reference.
    """
    groups = [group.double() for group in (*positives, *negatives) if group is not None]
    centred = torch.cat([group - group.mean(dim=0) for group in groups])
    means = torch.stack([group.double().mean(dim=0) for group in positives])
    reference = means.mean(dim=0)
    against = torch.stack(
        [reference if group is None else group.double().mean(dim=0) for group in negatives]
    )
    scale = _scale(centred)
    shrinkage = ledoit_wolf(centred / scale)
    weight = _solve(centred / scale, shrinkage, ((means - against) / scale).T).T / scale
    bias = -0.5 * ((means + against) * weight).sum(dim=1)
    return LinearRouter(weight.float(), bias.float(), shrinkage)


def ledoit_wolf(centred: Tensor) -> float:
    """The shrinkage towards a sphere that minimises the expected error (Ledoit & Wolf, 2004).

    ρ = min(1, β/δ), δ = ‖S − (tr S/p)·I‖², β = Σᵢ‖xᵢxᵢᵀ − S‖² / n², all from the data.

    Args:
        centred: [n, p], each group about its own mean.

    Returns:
        0 (the sample covariance) … 1 (a sphere).
    """
    count, features = centred.shape
    # ‖XᵀX‖ = ‖XXᵀ‖: the smaller of the two is made.
    gram = centred @ centred.T if count < features else centred.T @ centred
    norm = float(gram.square().sum()) / count**2
    size = float(centred.square().sum()) / count
    fourth = float(centred.square().sum(dim=1).square().mean())
    delta = norm - size**2 / features
    beta = (fourth - norm) / count
    return min(1.0, max(0.0, beta / delta)) if delta > 0 else 1.0


def _scale(centred: Tensor) -> Tensor:
    """Each feature's standard deviation, [features]."""
    scale = centred.square().mean(dim=0).sqrt()
    usual = float(scale.mean()) or 1.0
    return torch.where(scale > 1e-6 * usual, scale, usual)


def _solve(centred: Tensor, shrinkage: float, right: Tensor) -> Tensor:
    """((1−ρ)S + ρ·(tr S/p)·I)⁻¹ · right, in whichever of the two spaces is the smaller."""
    count, features = centred.shape
    size = float(centred.square().sum()) / count / features
    if size == 0:
        return right
    # The floor serves data on which no shrinkage is needed, yet which don't span every direction.
    sphere = max(shrinkage, 1e-9) * size
    share = (1 - shrinkage) / count
    if features <= count:
        covariance = share * (centred.T @ centred)
        covariance.diagonal().add_(sphere)
        solved: Tensor = torch.linalg.solve(covariance, right)
        return solved
    inner = share * (centred @ centred.T)
    inner.diagonal().add_(sphere)
    inside: Tensor = torch.linalg.solve(inner, centred @ right)
    return (right - share * (centred.T @ inside)) / sphere  # Woodbury's identity


INITIALISATIONS: dict[str, Initialise] = {
    "discriminant": discriminant,
    "mean_difference": mean_difference,
}


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


def from_prompts(
    positives: Sequence[Tensor],
    negatives: Sequence[Tensor | None] | None = None,
    *,
    initialisation: str = "discriminant",
) -> LinearRouter:
    """A router from the features of each expert's prompts.

    Args:
        positives: for each expert [prompts, features].
        negatives: the same; None (for one expert, or for all) stands for the other experts.
        initialisation: a name in `INITIALISATIONS`.

    Raises:
        MixtureError: an expert has no prompts, or a feature is not finite.
    """
    given = [None] * len(positives) if negatives is None else list(negatives)
    for i, group in enumerate([*positives, *given]):
        if group is None:
            continue
        if len(group) == 0:
            raise MixtureError(f"expert {i % len(positives)} has no prompts to route by")
        if not torch.isfinite(group).all():
            raise MixtureError(
                f"expert {i % len(positives)}: the feature of a prompt is NaN or infinite; "
                "the encoder's weights are damaged"
            )
    return INITIALISATIONS[initialisation](positives, given)


def _without(group: Tensor, fold: int, folds: int) -> Tensor:
    keep = torch.arange(len(group)) % folds != fold
    # A list of negatives may be shorter than the folds; an empty group has no mean.
    return group[keep] if bool(keep.any()) else group


def _value_at(values: Tensor, index: int) -> float:
    return float(values[index]) if index < len(values) else 0.0
