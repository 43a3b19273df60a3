"""A server that speaks as OpenAI's does, without a model: `NAME [pause=S] [status=N] [key=K]`.

`cookie=C` sets one with every answer, `pem=FILE` speaks https with that key and certificate.

It answers a prompt with five times its last word. Prompts that begin with "held" stall after the
role, those that begin with "begun" after the first word, if it was started with `stall=1`.
"""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

OPTIONS: dict[str, str] = {}
ASKED: list[Any] = []
COOKIES: list[str] = []
OPEN = 0


def pause() -> float:
    return float(OPTIONS.get("pause", "0"))


def answer(text: str) -> list[str]:
    return [text.split()[-1] + " "] * 5


async def complete(request: Request) -> Response:
    body = await request.json()
    ASKED.append(body)
    COOKIES.append(request.headers.get("cookie", ""))
    if status := int(OPTIONS.get("status", "0")):
        headers = {"retry-after": "7"} if status == 429 else {}
        return JSONResponse({"error": {"message": "no"}}, status, headers)
    if (key := OPTIONS.get("key")) and request.headers.get("authorization") != f"Bearer {key}":
        return JSONResponse({"error": {"message": "wrong key"}}, 401)
    chat = "messages" in body
    text = body["messages"][-1]["content"] if chat else body["prompt"]
    if "refuse" in text:
        return JSONResponse({"detail": "that is refused"}, 422)
    words = answer(text)
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    if not body.get("stream"):
        await asyncio.sleep(5 * pause())
        said = {"message": {"role": "assistant", "content": "".join(words)}}
        choice = {
            "index": 0,
            "finish_reason": "stop",
            **(said if chat else {"text": "".join(words)}),
        }
        cookie = OPTIONS.get("cookie")
        return JSONResponse(
            {"id": "x", "model": OPTIONS["name"], "choices": [choice], "usage": usage},
            headers={"set-cookie": cookie} if cookie else None,
        )
    return StreamingResponse(stream(text, words, chat=chat), media_type="text/event-stream")


async def stream(text: str, words: list[str], *, chat: bool) -> AsyncIterator[str]:
    global OPEN
    OPEN += 1
    try:
        if chat:
            yield event({"delta": {"role": "assistant"}, "finish_reason": None})
        if "stall" in OPTIONS and text.startswith("held"):
            await asyncio.sleep(100)
        for place, word in enumerate(words):
            await asyncio.sleep(pause())
            yield event({"delta": {"content": word}} if chat else {"text": word})
            if "stall" in OPTIONS and text.startswith("begun") and place == 0:
                await asyncio.sleep(100)
        if "broken" in text:
            yield 'data: {"error": "worn out"}\n\n'
        elif "cut" not in text:
            yield event({"finish_reason": "stop", **({"delta": {}} if chat else {"text": ""})})
            if "abrupt" not in text:
                yield "data: [DONE]\n\n"
    finally:
        OPEN -= 1


def event(choice: dict[str, Any]) -> str:
    chunk = {"id": "x", "model": OPTIONS["name"], "choices": [{"index": 0, **choice}]}
    return f"data: {json.dumps(chunk)}\n\n"


async def asked(_request: Request) -> Response:
    return JSONResponse({"asked": ASKED, "cookies": COOKIES, "open": OPEN})


async def health(_request: Request) -> Response:
    return Response("ok")


def main(name: str, *words: str) -> None:
    OPTIONS.update(word.split("=", 1) for word in words)
    OPTIONS["name"] = name
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/asked", asked),
            Route("/health", health),
        ]
    )
    listening = socket.create_server(("127.0.0.1", int(OPTIONS.get("port", "0"))))
    sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, ssl_certfile=OPTIONS.get("pem")
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
