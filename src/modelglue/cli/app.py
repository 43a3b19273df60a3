"""The application that the commands enter themselves into, and what they share.

Exit codes: 0 done, 1 the work failed, 2 bad input or usage.
"""

import gc
import json
import os
import sys
from typing import Annotated, Any

import typer

import modelglue
from modelglue.errors import ModelGlueError

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
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps … Default: the recipe's, or cpu.")
]
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
    # Imports make many objects and no garbage: looking for some takes a tenth of a small merge.
    gc.set_threshold(100_000)
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
                "modelglue: stopped. demo, glue, search, minizoo, merge, stats, train-router and "
                "some mixtures go on from here when the same command is given again; other "
                "commands have left nothing behind.",
                err=True,
            )
        raise
    finally:
        gc.freeze()  # the interpreter's last look for garbage takes as long


def print_json(value: Any) -> None:
    """What `--json` prints."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


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
