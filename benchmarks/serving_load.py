"""Requests to a served mixture, all at once, and what their clients are told."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import openai

VERDICTS = ("answered", "broke off", "lost", "mixed up")


@dataclass(frozen=True)
class Asked:
    """A request, and what the bundle alone makes of it."""

    prompt: str
    tokens: int
    stop: tuple[str, ...]
    text: str
    expert: str


@dataclass
class Told:
    """What a client was told; seconds since it asked."""

    text: str = ""
    expert: str = ""
    finish: str = ""
    error: str = ""
    code: str = ""
    first: float = math.nan
    seconds: float = math.nan


async def load(
    address: str,
    experts: Sequence[str],
    asked: Sequence[Asked],
    *,
    kill: Callable[[], None] | None = None,
) -> tuple[list[Told], float]:
    """Ask everything at once; what each client was told, and seconds in all.

    Args:
        experts: which are asked twice before, so that none is loaded meanwhile.
        kill: done when a quarter of the answers is there.
    """
    ended = 0

    async def one(request: Asked) -> Told:
        nonlocal ended
        told = await ask(api, request)
        ended += 1
        if kill is not None and ended == len(asked) // 4:
            kill()
        return told

    async with openai.AsyncOpenAI(
        base_url=address, api_key="none", max_retries=0, timeout=600
    ) as api:
        for expert in experts:
            for _ in range(2):
                await api.completions.create(model=expert, prompt="a", max_tokens=1)
        began = time.perf_counter()
        told = await asyncio.gather(*map(one, asked))
        return told, time.perf_counter() - began


async def ask(api: openai.AsyncOpenAI, request: Asked) -> Told:
    """Stream one answer."""
    told, began = Told(), time.perf_counter()
    try:
        raw = await api.completions.with_raw_response.create(
            model="glued",
            prompt=request.prompt,
            max_tokens=request.tokens,
            stop=list(request.stop) or None,
            temperature=0,
            stream=True,
        )
        told.expert = raw.headers["x-modelglue-expert"]
        async for part in raw.parse():
            (choice,) = part.choices
            if choice.text and not told.text:
                told.first = time.perf_counter() - began
            told.text += choice.text
            told.finish = choice.finish_reason or told.finish
    except Exception as error:  # noqa: BLE001  (whatever it is, the client has no answer)
        told.error = f"{type(error).__name__}: {error}"
        told.code = getattr(error, "code", None) or ""
    told.seconds = time.perf_counter() - began
    return told


def verdict(asked: Asked, told: Told) -> str:
    """What became of a request, one of `VERDICTS`."""
    if told.expert and told.expert != asked.expert:
        return "mixed up"
    if told.error:
        begun = told.text and asked.text.startswith(told.text)
        return "broke off" if begun and told.code == "upstream_interrupted" else "lost"
    if not told.finish:
        return "lost"
    return "answered" if (told.text, told.expert) == (asked.text, asked.expert) else "mixed up"
