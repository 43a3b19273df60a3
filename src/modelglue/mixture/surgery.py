"""Experts inside a stock model, as a checkpoint that carries its own modelling file.

What no stock class can hold: routes for whole samples, MLP routers, whole layers as experts, whole
stacks above shared ones, and every family that transformers has. transformers loads the result with
`trust_remote_code=True`, or as it is once `modelglue.mixture.modeling_modelglue` is imported.

Nothing is instantiated, and nothing held but a few chunks: bytes go from file to file.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from modelglue.checkpoint.card import model_card
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.writer import CheckpointWriter
from modelglue.merge.engine.crew import Crew
from modelglue.merge.engine.reading import Workspace
from modelglue.mixture.conditions import as_json, shown
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import Router
from modelglue.mixture.stock import copy_jobs
from modelglue.mixture.surgery_plan import MODULE, LayersPlan, make_layers_plan

_LEVELS = {
    "ffn": "The feed-forward part of each layer is a list of experts",
    "block": "Each decoder layer is a list of experts",
    "model": "Above the shared layers stand whole models",
}


def write_layers(
    out: str | Path,
    experts: Mapping[str, str | Path],
    dense: str | Path,
    routers: Sequence[Router] | None,
    *,
    kind: MixtureKind,
    reasons: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> Path:
    """Write a mixture as one checkpoint, with the code that runs it.

    Args:
        out: the folder to make; it must not be there.
        experts: name → folder of the model whose parts it has, in the order of the routers' rows.
        dense: the folder of the model that everything else comes from.
        routers: one a mixed layer, at model level one in all; None for zeros.
        kind: any but a bundle: whole models must share a layer.
        reasons: name → why it is in, noted in `config.json`.
        threads: chunks under way at a time; by default one a core, four at most.

    Returns:
        `out`.

    Raises:
        MixtureError: models or routers do not fit; all that is wrong.
        CheckpointError: a model cannot be read.
        OutputExists, OutOfSpace: as `CheckpointWriter`.
    """
    with ExitStack() as opened:
        model, chosen = _opened(opened, experts, dense)
        plan = make_layers_plan(model, chosen, routers, kind)
        config = dict(plan.config)
        if reasons:
            config["modelglue"] = {**config["modelglue"], "reasons": dict(reasons)}
        conditions = [router.condition for router in routers or ()]
        if conditions:
            told = {"conditions": as_json(conditions)}
            config["modelglue"] = {**config["modelglue"], **told}
        with CheckpointWriter(out, plan.layout) as writer:
            crew = Crew(threads or min(4, len(os.sched_getaffinity(0))), Workspace)
            crew.run([job for output in plan.outputs for job in copy_jobs(output, writer)])
            return writer.commit(
                config=config,
                files_from=model,
                card=_card(Path(out).name, model, chosen, kind, reasons or {}, conditions),
                extra={f"{MODULE}.py": modelling_file()},
            )


def check_layers(
    experts: Mapping[str, str | Path], dense: str | Path, *, kind: MixtureKind
) -> LayersPlan:
    """Raise what `write_layers` would, but for routers; no weight is read.

    Returns:
        What it would write, with routers of zeros. The checkpoints that it names are closed.

    Raises:
        MixtureError: models do not fit; all that is wrong.
        CheckpointError: a model cannot be read.
    """
    with ExitStack() as opened:
        model, chosen = _opened(opened, experts, dense)
        return make_layers_plan(model, chosen, None, kind)


def modelling_file() -> str:
    """The code that every such checkpoint carries."""
    return Path(__file__).with_name(f"{MODULE}.py").read_text(encoding="utf-8")


def _opened(
    opened: ExitStack, experts: Mapping[str, str | Path], dense: str | Path
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """The dense model and the experts; one checkpoint for all that name it, so it is read once."""
    models = {
        path: opened.enter_context(Checkpoint.open(path))
        for path in dict.fromkeys(Path(path) for path in (dense, *experts.values()))
    }
    return models[Path(dense)], {name: models[Path(path)] for name, path in experts.items()}


def _card(
    name: str,
    dense: Checkpoint,
    experts: Mapping[str, Checkpoint],
    kind: MixtureKind,
    reasons: Mapping[str, str],
    conditions: Sequence[float],
) -> str:
    unit = "token" if kind.input == "token" else "prompt"
    notes = [
        f"{_LEVELS[kind.level]}: {kind.top_k} of {len(experts)} answer each {unit}. The bottom "
        f"{kind.shared_layers} layers, and all that is no expert's, are the dense model's.",
        "Load it with `trust_remote_code=True`; the code is in this folder.",
        *([f"Condition of the routers' weights: {shown(conditions)}."] if conditions else []),
        "\n".join(
            f"- expert {i}, {label}: {reasons.get(label) or 'no reason was noted'}"
            for i, label in enumerate(experts)
        ),
    ]
    inputs = [("dense", dense), *experts.items()]
    return model_card(
        name,
        method=f"mixture {kind.short}",
        inputs=[
            (label, model.ref, model.known_fingerprint() or "not computed")
            for label, model in inputs
        ],
        parameters=kind.to_mapping(),
        notes="\n\n".join(notes),
    )
