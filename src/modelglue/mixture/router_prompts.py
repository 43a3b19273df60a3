"""Routers from prompts, without training: closed forms over features.

Each is made of the features of every expert's positive prompts (what it is good at, or texts of its
domain) and negative prompts (what it should not get).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from modelglue.errors import MixtureError, UnknownName
from modelglue.mixture.router import LinearRouter
from modelglue.registry import nearest

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
    scale = feature_scale(centred)
    shrinkage = ledoit_wolf(centred / scale)
    weight = shrunk_solve(centred / scale, shrinkage, ((means - against) / scale).T).T / scale
    bias = -0.5 * ((means + against) * weight).sum(dim=1)
    return LinearRouter(weight.float(), bias.float(), shrinkage)


def nearest_mean(positives: Sequence[Tensor], negatives: Sequence[Tensor | None]) -> LinearRouter:
    """To the expert whose mean feature is the nearest; a handful of texts of its domain will do.

    With features in units of their standard deviation within the experts' texts, the logit is
    −½‖x − μₑ‖² less what is the same for all experts: wₑ = μₑ, bₑ = −½‖μₑ‖². No correlations are
    estimated, for which a handful would not be enough. What was given as negative counts by its
    mean, −½‖x − μₑ⁺‖² + ½‖x − μₑ⁻‖².

    Args:
        positives: for each expert [texts, features].
        negatives: the same; None stands for the mean of all experts' means.
    """
    groups = [group.double() for group in (*positives, *negatives) if group is not None]
    scale = feature_scale(torch.cat([group - group.mean(dim=0) for group in groups]))
    means = torch.stack([group.double().mean(dim=0) for group in positives]) / scale
    reference = means.mean(dim=0)
    against = torch.stack(
        [reference if group is None else group.double().mean(dim=0) / scale for group in negatives]
    )
    weight = means - against
    bias = -0.5 * (means.square().sum(dim=1) - against.square().sum(dim=1))
    return LinearRouter((weight / scale).float(), bias.float())


def random_router(
    positives: Sequence[Tensor], negatives: Sequence[Tensor | None], *, seed: int = 0
) -> LinearRouter:
    """Weights drawn at random, to compare with: what a mixture is worth that nobody routes.

    Over the given texts each logit has mean 0 and variance 1, but for correlations.
    """
    features = torch.cat([group.double() for group in positives])
    scale = feature_scale(features - features.mean(dim=0))
    generator = torch.Generator().manual_seed(seed)
    width = features.shape[1]
    drawn = torch.randn(len(positives), width, generator=generator, dtype=torch.double)
    weight = drawn / (scale * width**0.5)
    return LinearRouter(weight.float(), -(weight @ features.mean(dim=0)).float())


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


def feature_scale(centred: Tensor) -> Tensor:
    """Each feature's standard deviation, [features]."""
    scale = centred.square().mean(dim=0).sqrt()
    usual = float(scale.mean()) or 1.0
    return torch.where(scale > 1e-6 * usual, scale, usual)


def shrunk_solve(centred: Tensor, shrinkage: float, right: Tensor) -> Tensor:
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
    "nearest_mean": nearest_mean,
    "random": random_router,
}


def from_prompts(
    positives: Sequence[Tensor],
    negatives: Sequence[Tensor | None] | None = None,
    *,
    initialisation: str = "discriminant",
    seed: int = 0,
) -> LinearRouter:
    """A router from the features of each expert's prompts.

    Args:
        positives: for each expert [prompts, features].
        negatives: the same; None (for one expert, or for all) stands for the other experts.
        initialisation: a name in `INITIALISATIONS`.
        seed: for "random".

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
    return initialiser(initialisation, seed=seed)(positives, given)


def initialiser(initialisation: str, *, seed: int = 0) -> Initialise:
    """The function behind a name in `INITIALISATIONS`.

    Raises:
        UnknownName: it is none of them.
    """
    if initialisation not in INITIALISATIONS:
        raise UnknownName(
            f"there is no router initialisation {initialisation!r}"
            f"{nearest(initialisation, INITIALISATIONS)}. Known: {', '.join(INITIALISATIONS)}."
        )
    made = INITIALISATIONS[initialisation]
    return partial(random_router, seed=seed) if made is random_router else made
