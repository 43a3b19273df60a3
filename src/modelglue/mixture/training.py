"""Train a router over whole models, without training a language model.

Which expert answers a sample changes nothing in the experts, so every expert's loss on every sample
is computed once, and so is every sample's feature. What is left is a small problem over that table:

    minimise  mean over samples of Σₑ pₑ(x) · Lₑ   [+ balance · (E·Σₑ p̄ₑ² − 1) − entropy · H(p)]

the expected loss under the router's probabilities. A table of scores (a search split's, one number
an item and expert) serves as well, with L = −score: Σₑ pₑ·scoreₑ is maximised.

Solved by Adam (Kingma & Ba, arXiv 1412.6980) over all samples at once, in fp64 and on standardised
features: no order of samples, the same result each time. (L-BFGS ends after a few steps where the
softmax is sure: the loss is not convex, and flat there.) It stops when the loss on a held-out part
has not fallen for some steps, and what was best there is what counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modelglue.errors import MixtureError
from modelglue.mixture.router import LinearRouter, MLPRouter, Router, from_tensors
from modelglue.mixture.router_file import PromptRouter
from modelglue.mixture.router_prompts import feature_scale
from modelglue.mixture.training_report import BeforeAfter, compare
from modelglue.mixture.training_samples import parted


@dataclass(frozen=True)
class LossTable:
    """What every expert loses on every sample.

    Args:
        texts: what the router sees of each; equal ones stay together when samples are parted.
        features: [samples, features].
        losses: [samples, experts]; lower is better.
        unit: of the losses.
        documents: what each sample is a piece of; pieces of one stay together. By default each is
            its own.
    """

    texts: Sequence[str]
    features: Tensor
    losses: Tensor
    unit: str = "loss"
    documents: Sequence[str] | None = None


@dataclass(frozen=True)
class TableSettings:
    """How to train on a table.

    Args:
        steps: at most, of Adam, whose rate falls along a cosine.
        rate: at the start, for features of width 1; it is divided by √width, so that a step changes
            the logits alike whatever the width.
        patience: steps without a lower loss on the held-out part, after which it ends.
        decay: weight of the squared weights (on standardised features) in what is minimised.
        balance: weight of the load: 0 where the experts are used alike, E − 1 if one has all.
        entropy: weight of the mean entropy, which keeps the router from being sure too soon.
        stop: the share of samples that says when to stop.
        report: the share of samples that is left for the report.
        seed: for the parts.
    """

    steps: int = 500
    rate: float = 0.2
    patience: int = 50
    decay: float = 1e-3
    balance: float = 0.0
    entropy: float = 0.0
    stop: float = 0.2
    report: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A router, and what training it did.

    Args:
        router: the trained one; or the one that was there before, if that is no worse on the
            held-out part.
        kept: whether it is the trained one.
        steps: that were made until the best held-out loss.
        report: of the samples' losses with the experts that they go to.
        single: on the same samples, the loss of the expert that is best on the others.
        oracle: on the same samples, the loss if each went to its best expert.
    """

    router: PromptRouter
    kept: bool
    steps: int
    report: BeforeAfter
    single: float
    oracle: float


def train_on_table(
    router: Router,
    table: LossTable,
    *,
    before: PromptRouter | None = None,
    top_k: int = 1,
    settings: TableSettings | None = None,
) -> Trained:
    """Train a linear or an MLP router.

    Args:
        router: where to start.
        before: what the result is compared with, and must be better than; by default `router`.
        top_k: how many experts answer a prompt. Several count by their weights, Σ wₑ·Lₑ, which is
            an upper bound of what they lose together.

    Raises:
        MixtureError: the table is not for this router, or holds NaN or infinity.
        InputError: too few samples.
    """
    settings = settings or TableSettings()
    _check(router, table)
    before = router if before is None else before
    whole = table.texts if table.documents is None else table.documents
    parts = parted(whole, seed=settings.seed, stop=settings.stop, report=settings.report)
    fit, stop, report = (
        (table.features[list(part)].double(), table.losses[list(part)].double())
        for part in (parts.fit, parts.stop, parts.report)
    )
    found, steps = fit_router(router, fit, stop, settings)
    kept = routed(found, *stop, top_k).mean() < routed(before, *stop, top_k).mean()
    result = found if kept else before
    best = int(torch.cat([fit[1], stop[1]]).mean(dim=0).argmin())
    return Trained(
        result,
        bool(kept),
        steps,
        compare(
            routed(before, *report, top_k).numpy(),
            routed(result, *report, top_k).numpy(),
            documents=[whole[i] for i in parts.report],
            unit=table.unit,
            seed=settings.seed,
        ),
        single=float(report[1][:, best].mean()),
        oracle=float(report[1].amin(dim=1).mean()),
    )


def fit_router(
    router: Router,
    fit: tuple[Tensor, Tensor],
    stop: tuple[Tensor, Tensor],
    settings: TableSettings,
) -> tuple[Router, int]:
    """The trained router, and after how many steps its held-out loss was lowest.

    Args:
        fit: features [samples, features] and losses [samples, experts] to train on.
        stop: the same, held out.
    """
    centre = fit[0].double().mean(dim=0)
    scale = feature_scale(fit[0].double() - centre)
    trained, steps = _minimise(
        _moved(_calmed(router, fit[0]), centre, scale),
        [
            ((features.double() - centre) / scale, losses.double())
            for features, losses in (fit, stop)
        ],
        settings,
    )
    moved = _moved(trained, -centre / scale, 1 / scale)
    return from_tensors({name: tensor.float() for name, tensor in moved.tensors().items()}), steps


def routed(router: PromptRouter, features: Tensor, losses: Tensor, top_k: int = 1) -> Tensor:
    """Each sample's loss with the experts that it goes to, [samples]."""
    top, experts = router.probabilities(features).topk(top_k, dim=1)
    weights = top / top.sum(dim=1, keepdim=True)
    return (weights * losses.double().gather(1, experts)).sum(dim=1)


def _minimise(
    router: Router, parts: Sequence[tuple[Tensor, Tensor]], settings: TableSettings
) -> tuple[Router, int]:
    """The router with the lowest expected loss on the second part, trained on the first."""
    (features, losses), (held, held_losses) = parts
    lowest = losses.amin(dim=1, keepdim=True)
    # What can be lost, 1 on average: the settings' weights then mean the same for every table.
    stake = float((losses.amax(dim=1, keepdim=True) - lowest).mean()) or 1.0
    regrets = (losses - lowest) / stake
    tensors = {
        name: tensor.double().clone().requires_grad_() for name, tensor in router.tensors().items()
    }
    optimizer = torch.optim.Adam(
        [
            {"params": [tensor], "lr": settings.rate / _fan_in(name, tensors) ** 0.5}
            for name, tensor in tensors.items()
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)

    def objective() -> Tensor:
        probabilities = from_tensors(tensors).logits(features).softmax(dim=1)
        loss: Tensor = (probabilities * regrets).sum(dim=1).mean()
        load = probabilities.mean(dim=0)
        loss = loss + settings.balance * (len(load) * load.square().sum() - 1)
        entropy = torch.special.entr(probabilities).sum(dim=1).mean()
        loss = loss - settings.entropy * entropy
        for name, tensor in tensors.items():
            if name.endswith("weight"):
                loss = loss + settings.decay * tensor.square().mean()
        return loss

    def held_out() -> float:
        with torch.no_grad():
            probabilities = from_tensors(tensors).logits(held).softmax(dim=1)
            return float((probabilities * held_losses).sum(dim=1).mean())

    best, best_loss, best_step = router, held_out(), 0
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad()
        torch.autograd.backward(objective())
        optimizer.step()
        schedule.step()
        if (loss := held_out()) < best_loss:
            kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            best, best_loss, best_step = from_tensors(kept), loss, step
        elif step - best_step >= settings.patience:
            break
    return best, best_step


def _fan_in(name: str, tensors: Mapping[str, Tensor]) -> int:
    """How many numbers a unit of this layer adds up."""
    return tensors[name.replace("bias", "weight")].shape[1]


def _moved(router: Router, centre: Tensor, scale: Tensor) -> Router:
    """The router that says of (x − centre) / scale what the given one says of x."""
    if isinstance(router, LinearRouter):
        weight = router.weight.double()
        return replace(router, weight=weight * scale, bias=router.bias.double() + weight @ centre)
    weight = router.weight1.double()
    return replace(router, weight1=weight * scale, bias1=router.bias1.double() + weight @ centre)


def _calmed(router: Router, features: Tensor) -> Router:
    """The router with logits divided so that it is not too sure to learn; routes stay the same.

    Closed forms can be sure beyond what a softmax can tell apart; its gradient is then nil.
    """
    if router.experts < 2:
        return router
    top = router.logits(features).topk(2, dim=1).values
    share = min(1.0, 2.0 / max(float((top[:, 0] - top[:, 1]).median()), 1e-12))
    if isinstance(router, LinearRouter):
        return replace(router, weight=router.weight * share, bias=router.bias * share)
    return replace(router, weight2=router.weight2 * share, bias2=router.bias2 * share)


def _check(router: Router, table: LossTable) -> None:
    if not isinstance(router, LinearRouter | MLPRouter):
        raise MixtureError("a router by neighbours cannot be trained; start from what is fitted")
    wanted = ((len(table.texts), router.features), (len(table.texts), router.experts))
    found = (tuple(table.features.shape), tuple(table.losses.shape))
    if wanted != found:
        raise MixtureError(
            f"a table of features and losses {found} for a router that needs {wanted}"
        )
    if not bool(torch.isfinite(table.features).all() and torch.isfinite(table.losses).all()):
        raise MixtureError("a feature or a loss of the table is NaN or infinite")
