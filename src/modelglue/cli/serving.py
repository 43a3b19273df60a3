"""Serving a mixture over HTTP."""

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from modelglue.cli.app import Device, app
from modelglue.errors import InputError


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="A mixture bundle.")],
    host: Annotated[str, typer.Option(help="Who may connect: 0.0.0.0 is everybody.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call it. Default: the folder's name.")
    ] = None,
    upstreams: Annotated[
        Path | None,
        typer.Option(help="YAML: where the experts are served. Default: in this process."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0, help="GiB for experts' weights. Default: half of the machine's, or the GPU's."
        ),
    ] = None,
    device: Device = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Of experts; auto: as they are stored."),
    ] = "auto",
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable with the key that clients give.")
    ] = None,
    max_body: Annotated[float, typer.Option(min=0.001, help="MiB of a request.")] = 4.0,
    max_prompt: Annotated[int, typer.Option(min=1, help="Characters of a prompt.")] = 400_000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of the longest answer.")] = 2048,
    max_active: Annotated[int, typer.Option(min=1, help="Requests at once, in all.")] = 512,
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait for an expert.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request in all.")] = 600.0,
    shutdown: Annotated[
        float, typer.Option(min=1, help="Seconds to finish what streams when stopped.")
    ] = 60.0,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write down what was asked, too.")
    ] = False,
) -> None:
    """Serve a mixture as OpenAI does: each request goes to the expert that it is for."""
    try:
        from modelglue.mixture.serving.assemble import Settings
        from modelglue.mixture.serving.run import serve as run_server
        from modelglue.mixture.serving.settings import Limits, Timeouts, read_key
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install 'modelglue[serve]'") from error

    try:
        key = read_key(api_key_env, os.environ) if api_key_env else None
    except ValueError as error:
        raise InputError(f"--api-key-env: {error}") from None
    _require_finite(memory=memory, max_body=max_body, timeout=timeout, shutdown=shutdown)
    settings = Settings(
        name=name,
        upstreams=upstreams,
        memory=None if memory is None else int(memory * 2**30),
        device=device or "cpu",
        dtype=dtype,
        key=key,
        log_prompts=log_prompts,
        limits=Limits(int(max_body * 2**20), max_prompt, max_tokens, max_active, queue),
        timeouts=Timeouts(total=timeout, shutdown=shutdown),
    )
    if key is None and host not in ("127.0.0.1", "localhost", "::1"):
        typer.secho(
            f"modelglue: anybody who reaches {host} can use this server; set a key with "
            "--api-key-env",
            err=True,
            fg=typer.colors.YELLOW,
        )

    def ready(address: str) -> None:
        typer.echo(f"{bundle}: {address}/v1")

    with _log_to_stderr():
        run_server(bundle, settings, host=host, port=port, ready=ready)


def _require_finite(**options: float | None) -> None:
    wrong = [
        "--" + name.replace("_", "-")
        for name, value in options.items()
        if value is not None and not math.isfinite(value)
    ]
    if wrong:
        raise InputError(f"{', '.join(wrong)}: must be finite")


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """A line of JSON for each request, and what goes wrong, as long as the block lasts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    levels = {"modelglue": logging.INFO, "uvicorn.error": logging.WARNING}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(level)
