"""Train the routers inside of a checkpoint, and nothing else, by language modelling.

transformers' Trainer on the checkpoint as it is loaded anywhere: cross entropy of the texts, plus
the load-balancing loss, under a cosine schedule. With one expert a token or sample the weight of
the choice is 1 whatever the router says. Our own modelling file lets the gradient through all the
same (1 + p − p.detach()), and experts are drawn by their probability while it is trained, so that
each is tried; stock classes, which let nothing through, are trained with two experts at work.
Where one router decides for all layers no language model is trained: see `training_forced`.

Only routers are trained, saved and written: everything else is compared bit for bit afterwards and
copied byte for byte. A training that was killed goes on from the Trainer's last checkpoint.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import reduce
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelglue.checkpoint.reader import Checkpoint, tensor_bytes
from modelglue.errors import InputError, MixtureError, RunError
from modelglue.evaluate.encoding import Encoder
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture import modeling_modelglue as _registered  # noqa: F401
from modelglue.mixture.folder import require_absent
from modelglue.mixture.router import condition
from modelglue.mixture.training_forced import fit_by_table, is_model_level
from modelglue.mixture.training_report import BeforeAfter, compare
from modelglue.mixture.training_rows import Row, losses, rows_of, takes_routing_mask
from modelglue.mixture.training_samples import Sample, parted
from modelglue.mixture.training_scales import calm, exploring, router_of
from modelglue.mixture.training_trainer import train_routers
from modelglue.mixture.training_write import stored_names, write_with


@dataclass(frozen=True)
class LayerSettings:
    """How to train routers inside of a checkpoint.

    Args:
        steps: of the optimiser.
        rows: sequences a step.
        length: of a sequence, in tokens; longer documents go on in further ones.
        rate: the highest learning rate, of AdamW, for what has width and spread 1; see
            `training_scales`.
        warmup: the share of the steps in which the rate rises; then it falls along a cosine.
        balance: weight of the load-balancing loss.
        save_every: steps between checkpoints of the training.
        stop: the share of texts by which it is decided whether the result is kept.
        report: the share of texts that is left for the report.
        seed: for the parts, and the order of texts.
    """

    steps: int = 300
    rows: int = 8
    length: int = 256
    rate: float = 0.05
    warmup: float = 0.05
    balance: float = 0.01
    save_every: int = 50
    stop: float = 0.1
    report: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class LayerTraining:
    """A checkpoint whose routers were trained.

    Attributes:
        path: the new checkpoint.
        routers: how many were trained.
        kept: whether they lost less than the given ones on texts that neither was trained on; else
            the new checkpoint has the given ones.
        resumed: the step from which the training went on, 0 if it did not have to.
        report: on texts that nothing was chosen by.
    """

    path: Path
    routers: int
    kept: bool
    resumed: int
    report: BeforeAfter

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "path": str(self.path)}


def train_layers(
    model: Path,
    out: Path,
    samples: Sequence[Sample],
    *,
    settings: LayerSettings | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> LayerTraining:
    """Write a checkpoint with the same experts and trained routers; the given one stays as it is.

    Args:
        model: a mixture at FFN, block or homogeneous model level, stock or our own.
        out: the new checkpoint, whole or not at all. Beside it stands, until it is done, a hidden
            folder from which a training that was killed goes on.
        samples: texts; what has a prompt is routed on it and trained on its completion.
        progress: is told the step and how many there are.

    Raises:
        OutputExists: `out` is taken.
        MixtureError: the model has no routers.
        InputError: too few texts.
        NonFiniteOutput: the loss is NaN.
    """
    require_absent(out)
    settings = settings or LayerSettings()
    loaded = HuggingFaceModel.load(model, device=device)
    module = loaded.module
    if not router_parameters(module):
        raise MixtureError(f"{model} has no routers; train-router is for mixtures")
    with Checkpoint.open(model) as checkpoint:
        names = stored_names(checkpoint, router_parameters(module))
        stored = {name: checkpoint.read(kept).dtype for name, kept in names.items()}
        asked = {"model": checkpoint.fingerprint(), "settings": asdict(settings)}
    if any(parameter.dtype != torch.float32 for parameter in router_parameters(module).values()):
        module.float()  # small steps vanish in half precision
    routers = router_parameters(module)
    fit, stop, report = _rows(samples, loaded.encoder, settings)
    before = [losses(module, rows, settings.rows) for rows in (stop, report)]
    start = {name: parameter.detach().clone() for name, parameter in routers.items()}
    frozen = _digest(module, routers)
    work, resumed = out.parent / f".{out.name}.training", 0
    if is_model_level(module):
        fit_by_table(module, routers, fit, stop, settings)
    else:
        asked["texts"] = _digest_of(fit)
        rates = calm(module, routers, fit)
        with _at_work(module, routers):
            resumed = train_routers(
                module,
                routers,
                rates,
                fit,
                work,
                asked,
                settings,
                device=device,
                progress=progress,
            )
    if _digest(module, routers) != frozen:
        raise RunError("training changed more than the routers; nothing was written")
    with torch.no_grad():
        for name, parameter in routers.items():  # as they will be read again
            parameter.copy_(parameter.to(stored[name]))
    after = [losses(module, rows, settings.rows) for rows in (stop, report)]
    kept = bool(after[0].sum() < before[0].sum())
    counts = np.array([row.counted for row in report], dtype=np.float64)
    found = compare(
        before[1],
        (after if kept else before)[1],
        counts,
        documents=[row.document for row in report],
        unit="nats a token",
        seed=settings.seed,
    )
    result: Mapping[str, Tensor] = routers if kept else start
    write_with(
        model,
        out,
        {names[name]: tensor for name, tensor in result.items()},
        conditions=_conditions(result),
        note={"kept": kept, "steps": settings.steps, **found.to_json()},
    )
    shutil.rmtree(work, ignore_errors=True)
    return LayerTraining(out, len({router_of(name) for name in routers}), kept, resumed, found)


def router_parameters(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters of a mixture's routers, by name; in stock classes they are called gates."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if ".router." in name or name.endswith(".gate.weight")
    }


def _conditions(routers: Mapping[str, Tensor]) -> list[float]:
    """Of each router, from its parameters by name; an MLP's are those of both layers' product."""
    weights: dict[str, list[Tensor]] = {}
    for name, tensor in routers.items():
        if name.endswith("weight"):
            weights.setdefault(router_of(name), []).append(tensor.detach().double().cpu())
    return [condition(reduce(lambda one, two: two @ one, own)) for own in weights.values()]


def _rows(
    samples: Sequence[Sample], encoder: Encoder, settings: LayerSettings
) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows to train on, to stop by, and to report on."""
    parts = parted(
        [sample.routed_on for sample in samples],
        seed=settings.seed,
        stop=settings.stop,
        report=settings.report,
    )
    fit, stop, report = (
        list(rows_of([samples[i] for i in part], encoder, settings.length))
        for part in (parts.fit, parts.stop, parts.report)
    )
    if not (fit and stop and report):
        raise InputError("too few of the texts have 2 tokens or more; give more text")
    return fit, stop, report


@contextmanager
def _at_work(module: Any, routers: Mapping[str, Tensor]) -> Iterator[None]:
    """Where one expert answers, let others be tried.

    A stock class gives its routers no gradient then, so that two answer while it is trained; our
    own does, and draws the one.
    """
    if takes_routing_mask(module):
        single = module.config.num_experts_per_tok == 1
        with exploring(module, routers) if single else nullcontext():
            yield
        return
    parts = [part for part in module.modules() if getattr(part, "top_k", None) == 1]
    for part in parts:
        part.top_k = 2
    try:
        yield
    finally:
        for part in parts:
            part.top_k = 1


def _digest(module: torch.nn.Module, routers: Mapping[str, Tensor]) -> str:
    """Of everything but the routers."""
    digest = blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        if name not in routers:
            digest.update(name.encode())
            digest.update(tensor_bytes(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()


def _digest_of(rows: Sequence[Row]) -> str:
    return blake2b(json.dumps([asdict(row) for row in rows]).encode(), digest_size=16).hexdigest()
