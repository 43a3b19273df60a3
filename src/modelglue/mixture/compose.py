"""From checkpoints and prompts to a mixture of any kind, in the form that most programs can read.

    model level, no shared layers     a bundle: whole checkpoints behind a router      (`mix`)
    FFN level, routed token by token  a stock mixture-of-experts class, if one fits    (`stock`)
    everything else                   a checkpoint that carries its modelling file     (`surgery`)

Whatever keeps the models from being mixed is found before a router is made or a byte is written.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import materialise, open_checkpoint
from modelglue.errors import MixtureError
from modelglue.mixture.conditions import confusions
from modelglue.mixture.features import Feature
from modelglue.mixture.folder import require_absent
from modelglue.mixture.initialise import initialise, initialise_from_scores
from modelglue.mixture.mix import MixtureSummary, checked_prompts, mix
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter, Router
from modelglue.mixture.router_prompts import initialiser
from modelglue.mixture.router_scores import ScoreTable
from modelglue.mixture.stock import write_stock
from modelglue.mixture.stock_plan import StockPlan, make_stock_plan, routed_parameters
from modelglue.mixture.stock_target import stock_target
from modelglue.mixture.surgery import check_layers, write_layers
from modelglue.mixture.surgery_plan import LayersPlan

DENSE = "the dense model"
"""What the encoder is called where it is no expert."""


def compose(
    experts: Mapping[str, str | Path],
    prompts: Mapping[str, Iterable[str]],
    out: str | Path,
    *,
    kind: MixtureKind | None = None,
    dense: str | Path | None = None,
    negatives: Mapping[str, Iterable[str]] | None = None,
    reasons: Mapping[str, str] | None = None,
    initialisation: str = "discriminant",
    scores: ScoreTable | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> MixtureSummary:
    """Put experts together and a router, or one for each mixed layer, before them.

    Args:
        experts: name → folder, hub reference or `base+adapter`.
        prompts: name → what the expert is good at. Repeated ones count once.
        out: a folder that is not there yet.
        kind: model level, linear by default.
        dense: what experts have no part of is taken from it: the models merged into one, say; the
            first expert by default. No bundle needs it.
        negatives: name → what the expert should not get, for any experts.
        reasons: name → why it is in, noted in the result.
        initialisation: see `mix`.
        scores: for "knn", in the place of prompts; see `mix`.
        seed: for "random", and for the units of an MLP that are not used at first.

    Raises:
        MixtureError: the models, or the experts and prompts, don't go together; all reasons that
            the models give are told at once.
        OutputExists, OutOfSpace: as `CheckpointWriter`.
    """
    kind = kind or MixtureKind()
    if kind.level == "model" and kind.shared_layers == 0:
        return mix(
            experts,
            prompts,
            out,
            kind=kind,
            negatives=negatives,
            reasons=reasons,
            initialisation=initialisation,
            scores=scores,
            seed=seed,
            device=device,
        )
    out = Path(out)
    require_absent(out)
    if not experts:
        raise MixtureError("a mixture needs two experts or more, and there are 0")
    positive = checked_prompts(experts, prompts, "prompts")
    negative = checked_prompts(experts, negatives or {}, "negatives")
    _check_initialisation(experts, positive, initialisation, scores)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Where adapters become models; experts that are plain folders are read where they are.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        refs = {**{f"expert {name}": ref for name, ref in experts.items()}, DENSE: dense}
        folders = {}
        for i, (name, ref) in enumerate(refs.items()):
            if ref is not None:
                with open_checkpoint(ref) as checkpoint:
                    folders[name] = materialise(checkpoint, Path(beside) / str(i))
        chosen = {name: folders[f"expert {name}"] for name in experts}
        base = folders.get(DENSE) or next(iter(chosen.values()))
        stock = stock_form(chosen, base, kind)
        in_stock = isinstance(stock, StockPlan)
        plan: StockPlan | LayersPlan
        plan = stock if isinstance(stock, StockPlan) else check_layers(chosen, base, kind=kind)
        given: dict[str, Any] = {"bias": not in_stock, "seed": seed, "device": device}
        routers: Sequence[Router]
        if scores is not None:
            routers = initialise_from_scores(base, kind, scores, **given)
        else:
            routers = initialise(
                base, kind, positive, negative, initialisation=initialisation, **given
            )
        if in_stock:
            linear = [router for router in routers if isinstance(router, LinearRouter)]
            write_stock(out, chosen, base, linear, kind=kind, reasons=reasons)
        else:
            write_layers(out, chosen, base, routers, kind=kind, reasons=reasons)
    summary = _summary(out, experts, dense, routers, kind, initialisation)
    return replace(
        summary,
        form=str(plan.config["model_type"]),
        not_stock=stock if isinstance(stock, str) else None,
        active=_at_work(summary, routed_parameters(plan.outputs)),
    )


def _check_initialisation(
    experts: Mapping[str, str | Path],
    positive: Mapping[str, Sequence[str]],
    initialisation: str,
    scores: ScoreTable | None,
) -> None:
    if (initialisation == "knn") != (scores is not None):
        raise MixtureError(
            "initialisation 'knn' and a table of scores belong together; give both or none "
            f"(initialisation is {initialisation!r})"
        )
    if scores is None:
        initialiser(initialisation)
        if missing := [name for name in experts if name not in positive]:
            raise MixtureError(f"prompts: none for {', '.join(missing)}; every expert needs some")
    elif scores.scores.shape[1] != len(experts):
        raise MixtureError(
            f"the table of scores has {scores.scores.shape[1]} experts of {len(experts)}"
        )


def stock_form(experts: Mapping[str, Path], dense: Path, kind: MixtureKind) -> StockPlan | str:
    """The mixture in a stock class, with routers of zeros; or why none can hold it.

    Where none can, the other form may; and if that can't either, it says why. The checkpoints that
    the plan names are closed.
    """
    with ExitStack() as opened:
        model = opened.enter_context(Checkpoint.open(dense))
        target = stock_target(model.config, kind)
        if isinstance(target, str):
            return target
        chosen = {
            name: opened.enter_context(Checkpoint.open(path)) for name, path in experts.items()
        }
        try:
            return make_stock_plan(model, chosen, None, target)
        except MixtureError as error:
            return str(error)


def _summary(
    out: Path,
    experts: Mapping[str, str | Path],
    dense: str | Path | None,
    routers: Sequence[Router],
    kind: MixtureKind,
    initialisation: str,
) -> MixtureSummary:
    """Of several routers the worst condition, and the most shrinkage."""
    shrinkage = [router.shrinkage for router in routers if router.shrinkage is not None]
    conditions = tuple(router.condition for router in routers)
    with Checkpoint.open(out) as checkpoint:
        stored = checkpoint.parameters
    return MixtureSummary(
        path=out,
        experts=tuple(experts),
        encoder=next(iter(experts)) if dense is None else DENSE,
        feature=Feature(layer=kind.shared_layers),
        initialisation=initialisation,
        shrinkage=max(shrinkage, default=None),
        condition=max(conditions),
        validation=None,
        kind=kind,
        conditions=conditions,
        confusions=tuple(confusions(routers, list(experts))),
        stored=stored,
    )


def _at_work(summary: MixtureSummary, routed: int) -> int:
    """Parameters at work at a time, where so many of those stored are experts'."""
    assert summary.stored is not None
    return summary.stored - routed + routed * summary.kind.top_k // len(summary.experts)
