"""A server over a bundle, from its first connection to its last."""

import gc
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import uvicorn

from modelglue.errors import RunError
from modelglue.evaluate.threads import threads_for
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.serving.assemble import Settings, assemble
from modelglue.mixture.serving.connections import Connection


def serve(
    path: Path,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[str], None] = lambda _address: None,
) -> None:
    """Serve a bundle until SIGTERM or Ctrl-C; then finish what is at work, and return.

    Args:
        port: 0 lets the system choose.
        ready: told of the address as soon as connections are taken.

    Raises:
        InputError: the bundle, the upstreams or the settings cannot be used; before any work.
        RunError: the address is taken.
    """
    bundle = Bundle.load(path, device=settings.device, dtype=settings.dtype)
    app = assemble(bundle, replace(settings, host=host))
    listening = _listen(host, port)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.timeouts.shutdown)),
    )
    server = uvicorn.Server(config)
    # What is there now stays: unloading an expert need not look through it for garbage.
    gc.collect()
    gc.freeze()

    def stop(_signal: int, _frame: object) -> None:
        # uvicorn has its own handler while it runs, and raises the signal again when it is done.
        if not server.should_exit:
            sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    shown = f"[{host}]" if ":" in host else host
    try:
        ready(f"http://{shown}:{listening.getsockname()[1]}")
        with threads_for(bundle.parameters_active), suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise RunError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; choose another with "
            "--host and --port"
        ) from error
