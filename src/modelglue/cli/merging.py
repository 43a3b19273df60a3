"""Merging: merge, the methods, and the statistics that some of them need."""

import gc
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from modelglue.cli.app import Device, Json, app, print_json
from modelglue.errors import OutputExists


@app.command()
def merge(
    config: Annotated[Path, typer.Argument(help="A merge configuration: YAML.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the merge on a CPU; default: one a core.")
    ] = None,
    device: Device = None,
    allow_nonfinite: Annotated[
        bool,
        typer.Option(
            "--allow-nonfinite",
            help="Write NaN and infinity, and say where. A method that measures a tensor first may "
            "spoil all of one that holds any.",
        ),
    ] = False,
    allow_crimes: Annotated[
        bool,
        typer.Option("--allow-crimes", help="Merge other architectures if their shapes agree."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Merge checkpoints into a new one, in bounded memory.

    Takes mergekit's YAML as it stands: models, slices or modules; base_model; parameters with
    gradients and filters; dtype; tokenizer. A model is a folder, org/name@revision, or
    base+adapter. A key that nobody knows is an error, and all errors are told before a weight is
    read.

    Killed at any moment, the same command goes on where it stopped. NaN or infinity in a model or
    in the result ends it, with the name of the tensor.
    """
    from modelglue.merge.engine.stream import execute
    from modelglue.merge.run import as_plan, require_device

    if out.exists():
        raise OutputExists(f"{out} is there already; choose another folder")
    device = None if device == "cpu" else device
    require_device(device)
    gc.set_threshold(100_000)  # a plan has very many objects and no cycles: a fifth of the time
    plan = as_plan(config, allow_crimes=allow_crimes)
    if dry_run:
        from modelglue.report.plan_tables import print_plan

        described = plan.describe(threads=threads)
        print_json(described) if as_json else print_plan(described)
        return
    with _progress(f"merging into {out}") as progress:
        merged = execute(
            plan,
            out,
            threads=threads,
            device=device,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
        )
    if as_json:
        print_json(
            {
                "path": str(out),
                "notes": list(plan.notes),
                "resumed": merged.resumed,
                "nonfinite": dict(merged.nonfinite),
            }
        )
        return
    for note in plan.notes:
        typer.echo(f"note: {note}", err=True)
    for tensor, count in merged.nonfinite.items():
        typer.echo(f"{tensor}: {count:,} entries are NaN or infinite", err=True)
    if merged.resumed:
        typer.echo(f"went on after {merged.resumed} finished tensors", err=True)
    typer.echo(f"{out}: {plan.method} of {', '.join(model.name for model in plan.models)}")


def _progress(text: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """A bar, where somebody looks: importing it takes longer than a small merge."""
    if not sys.stderr.isatty():
        return nullcontext()
    from modelglue.report.progress import bytes_progress

    return bytes_progress(text)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its formula.")] = None,
    as_json: Json = False,
) -> None:
    """The merge methods and their parameters."""
    from modelglue.merge.method import METHODS
    from modelglue.report.listings import print_method, print_methods

    found = [METHODS[name]] if name else [METHODS[each] for each in METHODS]
    described = [method.describe() for method in found]
    if as_json:
        print_json(described)
    elif name:
        print_method(described[0])
    else:
        print_methods(described)


@app.command()
def stats(
    model: Annotated[str, typer.Argument(help="A folder, org/name@revision, or base+adapter.")],
    text: Annotated[
        Path, typer.Option(help="Calibration text: .txt, a document a line, or .jsonl.")
    ],
    kind: Annotated[
        Literal["fisher", "gram"], typer.Option(help="For the method fisher, or for regmean.")
    ],
    output: Annotated[Path, typer.Option(help="The folder to make.")],
    tokens: Annotated[int | None, typer.Option(min=2, help="Where to stop; default: all.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Of a sequence, in tokens.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences at once, for gram.")] = 8,
    labels: Annotated[
        Literal["model", "text"],
        typer.Option(help="For fisher: drawn from the model, or the text's own tokens."),
    ] = "model",
    seed: Annotated[int, typer.Option(help="Of drawn labels.")] = 0,
    memory: Annotated[
        float, typer.Option(min=0.001, help="GiB for statistics, beside the model.")
    ] = 4.0,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of the model while it runs; auto: as it is stored."),
    ] = "auto",
    whole: Annotated[
        bool, typer.Option("--whole", help="A .txt file is one document, not one a line.")
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Compute what fisher and regmean need to know of a model, from calibration text.

    Killed at any moment, the same command goes on where it stopped.
    """
    from modelglue.calibrate.compute import compute_statistics
    from modelglue.calibrate.texts import read_texts
    from modelglue.checkpoint.reader import Checkpoint
    from modelglue.report.listings import print_statistics
    from modelglue.report.progress import bytes_progress

    with bytes_progress(f"{kind} of {model}") as progress:
        compute_statistics(
            model,
            read_texts(text, whole=whole),
            output,
            kind=kind,
            labels=labels,
            seed=seed,
            tokens=tokens,
            max_length=max_length,
            batch_size=batch_size,
            memory=int(memory * 2**30),
            device=device or "cpu",
            dtype=dtype,
            progress=progress,
        )
    with Checkpoint.open(output) as statistics:
        made = {"path": str(output), "tensors": len(statistics.tensors), **statistics.config}
    if as_json:
        print_json(made)
        return
    print_statistics(made)
    typer.echo(f"{output}: name it as statistics of {model} in a merge configuration")
