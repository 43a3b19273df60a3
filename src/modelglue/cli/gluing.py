"""The recipe: demo, glue, search, report, and the miniature zoo to try it on."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelglue.cli.app import Device, Json, Unsafe, app, print_json

if TYPE_CHECKING:
    from modelglue.minizoo.zoo import Zoo
    from modelglue.recipe.config import RecipeConfig

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Candidates evaluated side by side, in place of the recipe's number."),
]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        metavar="NAME",
        help="Who evaluates, in place of the recipe's: serial, workers or ray.",
    ),
]


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
    workers: Workers = None,
    executor: ExecutorName = None,
    unsafe_code: Unsafe = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the stages, do nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Cluster a zoo, merge each family selectively, put a router over them, and show the result.

    Killed at any moment, the same command goes on where it stopped.
    """
    recipe = _recipe(config, output, device, unsafe_code, executor=executor, workers=workers)
    if dry_run:
        _dry_run(recipe, as_json)
    else:
        _glue(recipe, (), as_json=as_json)


@app.command()
def search(
    config: Annotated[Path, typer.Argument(help="A recipe, as for glue.")],
    output: Annotated[Path | None, typer.Option(help="Write the run here instead.")] = None,
    device: Device = None,
    workers: Workers = None,
    executor: ExecutorName = None,
    unsafe_code: Unsafe = False,
    as_json: Json = False,
) -> None:
    """Only choose: which models of each family to merge, with what coefficients.

    Report items stay unseen; `glue` with the same recipe goes on from here.
    """
    from modelglue.recipe.search import search_families
    from modelglue.report.progress import run_progress
    from modelglue.report.terminal import search_tables, wide_console

    recipe = _recipe(config, output, device, unsafe_code, executor=executor, workers=workers)
    with run_progress() as listen:
        found = search_families(recipe, listen=listen)
    if as_json:
        paths = [path.to_json() for path in found.paths]
        tests = [asdict(test) for test in found.acceptance]
        print_json({"paths": paths, "acceptance": tests, "notes": found.notes})
        return
    for note in found.notes:
        typer.echo(f"Note: {note}")
    if not found.paths:
        typer.echo("no family has two models, so there is nothing to search")
    for path in found.paths:
        wide_console().print(*search_tables(path))
    for test in found.acceptance:
        typer.echo(f"\nfamily {test.family + 1}, {test.candidate}: {test.text}")


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
        print_json(found.to_json())
    else:
        print_report(found)
        typer.echo(f"\n{run / 'report.html'}")


@app.command()
def minizoo(
    preset: Annotated[str, typer.Argument(help="quick (8 models) or which16 (16).")],
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


def _recipe(
    path: Path,
    output: Path | None,
    device: str | None,
    unsafe_code: bool,
    *,
    executor: str | None,
    workers: int | None,
) -> "RecipeConfig":
    from modelglue.recipe.config import load_recipe

    return load_recipe(
        path,
        output=str(output.resolve()) if output else None,
        device=device,
        unsafe_code=True if unsafe_code else None,
        executor=executor,
        workers=workers,
    )


def _glue(recipe: "RecipeConfig", notes: tuple[str, ...], *, as_json: bool = False) -> None:
    from modelglue.recipe.glue import glue as run_glue
    from modelglue.report.progress import run_progress
    from modelglue.report.terminal import print_report

    command = shlex.join(["modelglue", *sys.argv[1:]])
    with run_progress() as listen:
        outcome = run_glue(recipe, listen=listen, notes=notes, command=command)
    if as_json:
        print_json(outcome.report.to_json())
        return
    print_report(outcome.report)
    if not outcome.fresh:
        typer.echo("\nThis run was finished already; nothing was done.")
    typer.echo(f"\nmodel   {outcome.model}\nreport  {outcome.path / 'report.html'}")


def _warn_of(zoo: "Zoo") -> None:
    if zoo.criterion is not None and zoo.criterion.warning is not None:
        typer.secho(f"modelglue: {zoo.criterion.warning}", err=True, fg=typer.colors.YELLOW)


def _dry_run(recipe: "RecipeConfig", as_json: bool) -> None:
    from modelglue.recipe.estimate import estimate
    from modelglue.recipe.inputs import open_inputs
    from modelglue.recipe.rundir import check_output
    from modelglue.report.listings import print_estimate

    check_output(recipe.output)
    with open_inputs(recipe) as inputs:
        stages = estimate(recipe, inputs)
    if as_json:
        print_json([vars(stage) for stage in stages])
    else:
        print_estimate([vars(stage) for stage in stages])
