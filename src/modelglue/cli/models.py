"""Single models: look at them, compare, score."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from modelglue.cli.app import Device, Json, Models, Unsafe, app, print_json
from modelglue.errors import InputError

if TYPE_CHECKING:
    from modelglue.zoo.cluster import Clustering


@app.command()
def inspect(models: Models, as_json: Json = False) -> None:
    """What checkpoints hold, read from their headers."""
    from modelglue.checkpoint.source import open_checkpoint
    from modelglue.report.listings import print_descriptions
    from modelglue.zoo.inspect import describe

    descriptions = []
    for reference in models:
        with open_checkpoint(reference) as checkpoint:
            descriptions.append(describe(checkpoint))
    if as_json:
        print_json([description.to_json() for description in descriptions])
    else:
        print_descriptions([description.to_json() for description in descriptions])


@app.command()
def cluster(
    models: Models,
    threshold: Annotated[float, typer.Option(help="Least similarity in a family.")] = 0.95,
    base: Annotated[str | None, typer.Option(help="Needed for task vectors.")] = None,
    task_vectors: Annotated[
        bool, typer.Option("--task-vectors", help="Compare what fine-tuning added to the base.")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="One cosine a matrix instead of one a column.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Which models can be merged with one another, and for every other pair why not."""
    from contextlib import ExitStack

    from modelglue.checkpoint.source import open_checkpoint
    from modelglue.zoo.cluster import cluster as find_families

    if task_vectors and base is None:
        raise InputError("--task-vectors needs --base, the model that the others come from")
    with ExitStack() as stack:
        checkpoints = [stack.enter_context(open_checkpoint(name)) for name in models]
        clustering = find_families(
            checkpoints,
            base=stack.enter_context(open_checkpoint(base)) if base else None,
            threshold=threshold,
            measure="tensor" if whole else "column",
            of="task_vectors" if task_vectors else "weights",
        )
    if as_json:
        print_json(clustering.to_json())
    else:
        _show_clustering(clustering)


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint or a mixture bundle.")],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="YAML: a task, a list of tasks, or a recipe; or harness:NAME, a task of "
            "lm-evaluation-harness, whole; repeatable."
        ),
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="paper-proxy or paper-report; repeatable.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the suite's published files. Default: the hub."),
    ] = None,
    split: Annotated[
        Literal["report", "search"] | None,
        typer.Option(help="Which items. Default: report; search for paper-proxy."),
    ] = None,
    device: Device = None,
    unsafe_code: Unsafe = False,
    as_json: Json = False,
) -> None:
    """Score a checkpoint or a mixture on tasks, with 95 % intervals."""
    from modelglue.recipe.evaluate import evaluate_model, tasks_of
    from modelglue.report.listings import print_scores

    tasks, chosen = tasks_of(task or (), suites=suite or (), data=data, split=split)
    scores = evaluate_model(
        model, tasks, split=chosen, device=device or "cpu", unsafe_code=unsafe_code
    )
    if as_json:
        print_json(scores.to_json())
    else:
        print_scores(scores)


def _show_clustering(clustering: "Clustering") -> None:
    from modelglue.recipe.assemble import similarity_map
    from modelglue.report.terminal import families_table, reasons_table, wide_console

    shown = similarity_map(clustering)
    wide_console().print(families_table(shown))
    if shown.reasons:
        wide_console().print(reasons_table(shown))
