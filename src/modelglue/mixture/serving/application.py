"""The application's addresses.

POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /health   GET /metrics
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from modelglue.mixture.serving.answers import Answers
from modelglue.mixture.serving.gateway import Gateway, no_model
from modelglue.mixture.serving.metrics import CONTENT_TYPE
from modelglue.mixture.serving.refusals import Refusal

Lifespan = Callable[[], AbstractAsyncContextManager[None]]


def application(gateway: Gateway, *, lifespan: Lifespan) -> Starlette:
    """The application over a gateway, for any ASGI server.

    Args:
        lifespan: what is to run while it does.
    """
    since = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": since, "owned_by": "modelglue"}

    async def models(request: Request) -> Response:
        gateway.require_allowed(request.scope)
        listed = [described(name) for name in gateway.models]
        return JSONResponse({"object": "list", "data": listed})

    async def model(request: Request) -> Response:
        gateway.require_allowed(request.scope)
        name = request.path_params["name"]
        if name not in gateway.models:
            raise no_model(name)
        return JSONResponse(described(name))

    async def health(_request: Request) -> Response:
        experts = {name: backend.state() for name, backend in gateway.backends.items()}
        live = [state["live"] for state in experts.values()]
        status = "ok" if all(live) else "degraded" if any(live) else "down"
        return JSONResponse(
            {"status": status, "model": gateway.name, "experts": experts},
            status_code=200 if any(live) else 503,
        )

    async def metrics(request: Request) -> Response:
        gateway.require_allowed(request.scope)
        return Response(gateway.metrics.text(), headers={"content-type": CONTENT_TYPE})

    @asynccontextmanager
    async def run(_app: Starlette) -> AsyncIterator[None]:
        async with lifespan():
            yield

    return Starlette(
        routes=[
            Route("/v1/chat/completions", Answers(gateway, "chat"), methods=["POST"]),
            Route("/v1/completions", Answers(gateway, "completion"), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        lifespan=run,
        exception_handlers={HTTPException: _http_problem, Refusal: _refused},
    )


async def _refused(_request: Request, error: Exception) -> Response:
    if not isinstance(error, Refusal):
        raise error
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _http_problem(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    refusal = Refusal(error.status_code, error.detail, code="no_such_address")
    return JSONResponse(refusal.body(), status_code=error.status_code, headers=error.headers)
