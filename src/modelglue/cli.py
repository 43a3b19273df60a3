"""The command line: one thin command a public function. Only this and `report` print.

Exit codes: 0 done, 1 the work failed, 2 bad input or usage. Heavy imports stand inside the
commands, so that `--help` answers at once.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import modelglue
from modelglue.errors import InputError, ModelGlueError, OutputExists

if TYPE_CHECKING:
    from modelglue.evaluate.task import Task
    from modelglue.minizoo.zoo import Zoo
    from modelglue.recipe.config import RecipeConfig
    from modelglue.zoo.cluster import Clustering

app = typer.Typer(
    name="modelglue",
    help="Make one better language model of the ones that you have, without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

STOPPED = 130
"""The exit code of a command that was stopped by Ctrl-C."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Models = Annotated[list[str], typer.Argument(help="Folders, org/name@revision, base+adapter.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps … Default: cpu.")]
Unsafe = Annotated[
    bool,
    typer.Option(
        "--unsafe-code",
        help="Where no sandbox works, run model-written code anyway: as you, with your files and "
        "your network. Only for models that you trust.",
    ),
]


def main() -> None:
    """Run the command line; errors that a user can meet are one message, not a traceback."""
    debug = "--debug" in sys.argv
    argv = [word for word in sys.argv[1:] if word != "--debug"]
    # Nothing here is faster with these, and both print warnings when a process forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(argv, prog_name="modelglue")
    except ModelGlueError as error:
        if debug:
            raise
        typer.secho(f"modelglue: {error}", err=True, fg=typer.colors.RED)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        typer.secho(f"modelglue: {place}{error.strerror or error}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    except SystemExit as end:
        if end.code == STOPPED:
            typer.secho(
                "modelglue: stopped. demo, glue, search and minizoo go on from here when the same "
                "command is given again; other commands have left nothing behind.",
                err=True,
            )
        raise


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"modelglue {modelglue.__version__}")
        raise typer.Exit


@app.callback(epilog="--debug, anywhere, shows the traceback of an error.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Make one better language model of the ones that you have, without training."""


@app.command()
def demo(
    zoo: Annotated[Path, typer.Option(help="Where the small zoo is, or will be.")] = Path(
        "zoo/quick"
    ),
    seed: Annotated[int, typer.Option(help="Of the zoo's data and training.")] = 0,
    preset: Annotated[str, typer.Option(help="Which zoo: quick or which16.")] = "quick",
    output: Annotated[Path | None, typer.Option(help="The run; default ZOO/runs/demo.")] = None,
    unsafe_code: Unsafe = False,
) -> None:
    """Train a small zoo of real checkpoints, glue it, and show what the result is worth."""
    from modelglue.minizoo.zoo import train_zoo
    from modelglue.recipe.config import load_recipe
    from modelglue.recipe.demo import without_code_where_unsafe
    from modelglue.recipe.rundir import check_output
    from modelglue.report.progress import zoo_progress

    output = (output or zoo / "runs" / "demo").resolve()
    check_output(output)
    with zoo_progress() as progress:
        _warn_of(train_zoo(preset, zoo, seed=seed, progress=progress))
    config = load_recipe(
        zoo / "glue.yaml", output=str(output), unsafe_code=True if unsafe_code else None
    )
    config, notes = without_code_where_unsafe(config)
    _glue(config, notes)


@app.command()
def glue(
    config: Annotated[Path, typer.Argument(help="The recipe: models, base, tasks, output.")],
    output: Annotated[Path | None, typer.Option(help="Write the run here instead.")] = None,
    device: Device = None,
    unsafe_code: Unsafe = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the stages, do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Cluster a zoo, merge each family selectively, put a router over them, and show the result.

    Killed at any moment, the same command goes on where it stopped.
    """
    recipe = _recipe(config, output, device, unsafe_code)
    if dry_run:
        _dry_run(recipe, as_json)
    else:
        _glue(recipe, (), as_json=as_json)


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
        _print_json([description.to_json() for description in descriptions])
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
        _print_json(clustering.to_json())
    else:
        _show_clustering(clustering)


@app.command()
def merge(
    config: Annotated[Path, typer.Argument(help="A merge configuration in mergekit's YAML.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one a core.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
) -> None:
    """Merge checkpoints into a new one, in bounded memory."""
    from modelglue.merge.run import as_plan
    from modelglue.merge.run import merge as run_merge
    from modelglue.report.listings import print_plan
    from modelglue.report.progress import bytes_progress

    if out.exists():
        raise OutputExists(f"{out} is there already; choose another folder")
    plan = as_plan(config)
    if dry_run:
        print_plan(plan.describe())
        return
    with bytes_progress(f"merging into {out}") as progress:
        run_merge(plan, out, threads=threads, progress=progress)
    typer.echo(f"{out}: {plan.method} of {', '.join(model.name for model in plan.models)}")


@app.command()
def search(
    config: Annotated[Path, typer.Argument(help="A recipe, as for glue.")],
    output: Annotated[Path | None, typer.Option(help="Write the run here instead.")] = None,
    device: Device = None,
    unsafe_code: Unsafe = False,
    as_json: Json = False,
) -> None:
    """Only choose: which models of each family to merge, with what coefficients.

    Report items stay unseen; `glue` with the same recipe goes on from here.
    """
    from modelglue.recipe.search import search_families
    from modelglue.report.progress import run_progress
    from modelglue.report.terminal import search_table, wide_console

    recipe = _recipe(config, output, device, unsafe_code)
    with run_progress() as listen:
        paths = search_families(recipe, listen=listen)
    if as_json:
        _print_json([asdict(path) for path in paths])
    else:
        if not paths:
            typer.echo("no family has two models, so there is nothing to search")
        for path in paths:
            wide_console().print(search_table(path))


@app.command()
def mix(
    config: Annotated[Path, typer.Argument(help="YAML: experts, each with model and prompts.")],
    out: Annotated[Path, typer.Argument(help="The bundle to make.")],
    as_json: Json = False,
) -> None:
    """Put a router over checkpoints of any architecture; nothing is trained."""
    from modelglue.mixture.config import load_mixture
    from modelglue.mixture.mix import mix as run_mix

    mixture = load_mixture(config)
    summary = run_mix(out=out, **mixture.arguments())
    if as_json:
        _print_json(summary.to_json())
    else:
        typer.echo(f"{out}: a router over {', '.join(summary.experts)}")


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint or a mixture bundle.")],
    task: Annotated[
        list[Path], typer.Option(help="YAML: a task, a list of tasks, or a recipe; repeatable.")
    ],
    split: Annotated[Literal["report", "search"], typer.Option(help="Which items.")] = "report",
    device: Device = None,
    unsafe_code: Unsafe = False,
    as_json: Json = False,
) -> None:
    """Score a checkpoint or a mixture on tasks, with 95 % intervals."""
    from modelglue.recipe.evaluate import evaluate_model
    from modelglue.report.listings import print_scores

    found = [each for path in task for each in _tasks(path, split)]
    scores = evaluate_model(
        model, found, split=split, device=device or "cpu", unsafe_code=unsafe_code
    )
    if as_json:
        _print_json(scores.to_json())
    else:
        print_scores(scores)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")], as_json: Json = False
) -> None:
    """Show a finished run, and write its page anew."""
    from modelglue.report.terminal import print_report
    from modelglue.report.write import read_report, write_report

    found = read_report(run)
    write_report(found, run)
    if as_json:
        _print_json(found.to_json())
    else:
        print_report(found)
        typer.echo(f"\n{run / 'report.html'}")


@app.command()
def minizoo(
    preset: Annotated[str, typer.Argument(help="quick (7 or 8 models) or which16.")],
    folder: Annotated[Path, typer.Argument(help="Where to put it.")],
    seed: Annotated[int, typer.Option(help="Of data and training.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one a core.")
    ] = None,
) -> None:
    """Train a miniature zoo of real checkpoints, with tasks and a recipe to glue it."""
    from modelglue.minizoo.zoo import train_zoo
    from modelglue.report.progress import zoo_progress

    with zoo_progress() as progress:
        _warn_of(train_zoo(preset, folder, seed=seed, progress=progress, workers=workers))
    typer.echo(f"next: modelglue glue {shlex.quote(str(folder / 'glue.yaml'))}")


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
        _print_json(described)
    elif name:
        print_method(described[0])
    else:
        print_methods(described)


def _recipe(
    path: Path, output: Path | None, device: str | None, unsafe_code: bool
) -> "RecipeConfig":
    from modelglue.recipe.config import load_recipe

    return load_recipe(
        path,
        output=str(output.resolve()) if output else None,
        device=device,
        unsafe_code=True if unsafe_code else None,
    )


def _glue(recipe: "RecipeConfig", notes: tuple[str, ...], *, as_json: bool = False) -> None:
    from modelglue.recipe.glue import glue as run_glue
    from modelglue.report.progress import run_progress
    from modelglue.report.terminal import print_report

    command = shlex.join(["modelglue", *sys.argv[1:]])
    with run_progress() as listen:
        outcome = run_glue(recipe, listen=listen, notes=notes, command=command)
    if as_json:
        _print_json(outcome.report.to_json())
        return
    print_report(outcome.report)
    if not outcome.fresh:
        typer.echo("\nThis run was finished already; nothing was done.")
    typer.echo(f"\nmodel   {outcome.model}\nreport  {outcome.path / 'report.html'}")


def _warn_of(zoo: "Zoo") -> None:
    if zoo.criterion is not None and zoo.criterion.warning is not None:
        typer.secho(f"modelglue: {zoo.criterion.warning}", err=True, fg=typer.colors.YELLOW)


def _show_clustering(clustering: "Clustering") -> None:
    from modelglue.recipe.assemble import similarity_map
    from modelglue.report.terminal import families_table, reasons_table, wide_console

    shown = similarity_map(clustering)
    wide_console().print(families_table(shown))
    if shown.reasons:
        wide_console().print(reasons_table(shown))


def _dry_run(recipe: "RecipeConfig", as_json: bool) -> None:
    from modelglue.recipe.estimate import estimate
    from modelglue.recipe.inputs import open_inputs
    from modelglue.recipe.rundir import check_output
    from modelglue.report.listings import print_estimate

    check_output(recipe.output)
    with open_inputs(recipe) as inputs:
        stages = estimate(recipe, inputs)
    if as_json:
        _print_json([vars(stage) for stage in stages])
    else:
        print_estimate([vars(stage) for stage in stages])


def _tasks(path: Path, split: Any) -> Iterator["Task"]:
    """The tasks of a YAML file: one, a list, or a recipe's."""
    from modelglue.evaluate.task import Task
    from modelglue.yamlfile import read_yaml

    value = read_yaml(path)
    if isinstance(value, dict) and "tasks" in value:
        value = value["tasks"]
    for mapping in value if isinstance(value, list) else [value]:
        yield Task.from_mapping(mapping, root=path.parent, splits=(split,))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
