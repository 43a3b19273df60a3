"""Experts come when asked and leave when others need the room; nobody waits for ever."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modelglue.errors import CheckpointError
from modelglue.mixture.serving.pool import ExpertPool
from modelglue.mixture.serving.refusals import Refusal
from modelglue.mixture.serving.writing import Piece

NAMES = ("a", "b", "c")


class Model:
    """What a pool knows of a model."""

    def __init__(self, path: Path) -> None:
        if path.name == "broken":
            raise CheckpointError("broken")
        self.path = path
        self.module = self

    def parameters(self) -> list[Any]:
        import torch

        return [torch.zeros(25)]  # 100 bytes

    def buffers(self) -> list[Any]:
        return []


@asynccontextmanager
async def pool_of(
    *, memory: int, queue: int = 8, names: tuple[str, ...] = NAMES
) -> AsyncIterator[tuple[ExpertPool, list[str]]]:
    """A pool of experts of 100 bytes each, and what it loads and unloads."""
    seen: list[str] = []
    load: Callable[[Path], Any] = Model
    pool = ExpertPool(
        {name: Path(name) for name in names},
        sizes=dict.fromkeys(names, 100),
        memory=memory,
        queue=queue,
        load=load,
        watch=lambda name, what, nbytes: seen.append(f"{what} {name}"),
    )
    pool.start()
    gc.freeze()  # unloading looks for garbage, and what tests have imported is none
    try:
        yield pool, seen
    finally:
        await pool.close()
        gc.unfreeze()


def say(text: str, *, beats: int = 1) -> Callable[[Any], Iterator[Piece]]:
    """Work that answers with the expert's name before a text, in so many pieces."""

    def work(model: Any) -> Iterator[Piece]:
        import time

        for _ in range(beats):
            time.sleep(0.002)
            yield Piece(f"{model.path.name}{text}", 1, 1)

    return work


async def ask(pool: ExpertPool, name: str, text: str = "") -> str:
    return "".join([piece.text async for piece in pool.answer(name, say(text))])


def test_the_least_recently_used_expert_leaves() -> None:
    async def run() -> list[str]:
        async with pool_of(memory=200) as (pool, seen):
            for name in ("a", "b", "a", "c", "a", "b"):
                assert await ask(pool, name) == name
            assert [pool.loaded(name) for name in NAMES] == [True, True, False]
            return seen

    assert asyncio.run(run()) == [
        "load a",
        "load b",
        "unload b",
        "load c",
        "unload c",
        "load b",
    ]


def test_experts_that_fit_together_stay() -> None:
    async def run() -> list[str]:
        async with pool_of(memory=300) as (pool, seen):
            for name in NAMES * 3:
                await ask(pool, name)
            return seen

    assert asyncio.run(run()) == ["load a", "load b", "load c"]


def test_many_at_once_all_get_their_own_answer_and_experts_change_once_a_queue() -> None:
    async def run() -> list[str]:
        async with pool_of(memory=100, queue=50) as (pool, seen):
            asked = [(NAMES[i % 3], str(i)) for i in range(90)]
            answers = await asyncio.gather(*(ask(pool, *one) for one in asked))
            assert answers == [name + text for name, text in asked]
            return seen

    assert asyncio.run(run()).count("load a") == 1


def test_an_expert_that_is_never_idle_still_makes_room() -> None:
    async def run() -> None:
        async with pool_of(memory=100) as (pool, _):
            stop = False

            async def busy() -> None:
                while not stop:
                    await ask(pool, "a")

            tasks = [asyncio.create_task(busy()) for _ in range(4)]
            await asyncio.sleep(0.02)
            assert await asyncio.wait_for(ask(pool, "b"), 5) == "b"
            stop = True
            await asyncio.gather(*tasks)

    asyncio.run(run())


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def run() -> Refusal:
        async with pool_of(memory=100, queue=2) as (pool, _):
            waiting = [asyncio.create_task(ask(pool, "a", str(i))) for i in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(Refusal) as caught:
                await ask(pool, "a")
            assert await asyncio.gather(*waiting) == ["a0", "a1"]
            return caught.value

    refusal = asyncio.run(run())
    assert refusal.status == 429
    assert int(refusal.headers()["retry-after"]) >= 1


def test_who_leaves_is_no_longer_worked_for() -> None:
    async def run() -> None:
        async with pool_of(memory=100) as (pool, _):
            told = []
            long = say("x", beats=100_000)
            async with aclosing(pool.answer("a", long)) as pieces:
                async for piece in pieces:
                    told.append(piece)
                    if len(told) == 3:
                        break
            # The thread is free for the next one within a piece.
            assert await asyncio.wait_for(ask(pool, "a"), 2) == "a"

    asyncio.run(run())


def test_who_leaves_the_queue_is_skipped() -> None:
    async def run() -> None:
        async with pool_of(memory=100) as (pool, seen):
            first = asyncio.create_task(ask(pool, "a"))
            gone = asyncio.create_task(ask(pool, "b"))
            await asyncio.sleep(0)
            gone.cancel()
            assert await first == "a"
            assert await ask(pool, "a") == "a"
            assert seen == ["load a"]

    asyncio.run(run())


def test_who_leaves_the_queue_leaves_room_in_it() -> None:
    async def run() -> None:
        async with pool_of(memory=100, queue=2) as (pool, _):
            async with aclosing(pool.answer("a", say("x", beats=100_000))) as pieces:
                await anext(pieces)
                gone = [asyncio.create_task(ask(pool, "a")) for _ in range(2)]
                await asyncio.sleep(0)
                assert pool.waiting("a") == 2
                for task in gone:
                    task.cancel()
                await asyncio.gather(*gone, return_exceptions=True)
                assert pool.waiting("a") == 0
                stays = asyncio.create_task(ask(pool, "a"))
                await asyncio.sleep(0)
            assert await asyncio.wait_for(stays, 2) == "a"

    asyncio.run(run())


def test_an_expert_asked_to_leave_leaves_when_all_who_waited_for_it_are_gone() -> None:
    async def run() -> None:
        async with pool_of(memory=100) as (pool, _):
            async with aclosing(pool.answer("a", say("x", beats=100_000))) as pieces:
                await anext(pieces)
                gone = [asyncio.create_task(ask(pool, "a")) for _ in range(3)]
                await asyncio.sleep(0)
                other = asyncio.create_task(ask(pool, "b"))
                await asyncio.sleep(0.01)
                for task in gone:
                    task.cancel()
                await asyncio.gather(*gone, return_exceptions=True)
            assert await asyncio.wait_for(other, 5) == "b"

    asyncio.run(run())


def test_nobody_leaves_for_one_who_has_left() -> None:
    async def run() -> list[str]:
        async with pool_of(memory=100) as (pool, seen):
            async with aclosing(pool.answer("a", say("x", beats=100_000))) as pieces:
                await anext(pieces)
                waits = asyncio.create_task(ask(pool, "a"))
                await asyncio.sleep(0)
                gone = asyncio.create_task(ask(pool, "b"))
                await asyncio.sleep(0.01)
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
            assert await asyncio.wait_for(waits, 5) == "a"
            assert await ask(pool, "a") == "a"
            return seen

    assert asyncio.run(run()) == ["load a"]


def test_room_that_is_made_for_nobody_can_be_made_again() -> None:
    async def run() -> list[str]:
        async with pool_of(memory=100) as (pool, seen):
            async with aclosing(pool.answer("a", say("x", beats=100_000))) as pieces:
                await anext(pieces)
                gone = asyncio.create_task(ask(pool, "b"))
                await asyncio.sleep(0.01)
                stays = asyncio.create_task(ask(pool, "b"))
                gone.cancel()
                await asyncio.sleep(0.01)
            assert await asyncio.wait_for(stays, 5) == "b"
            return seen

    assert asyncio.run(run()) == ["load a", "unload a", "load b"]


def test_an_expert_that_cannot_be_loaded_harms_no_other() -> None:
    async def run() -> None:
        async with pool_of(memory=100, names=("a", "broken")) as (pool, _):
            for _ in range(2):
                with pytest.raises(CheckpointError):
                    await ask(pool, "broken")
                assert await ask(pool, "a") == "a"

    asyncio.run(run())


def test_what_goes_wrong_amid_an_answer_is_told_and_the_next_one_is_answered() -> None:
    def fails(model: Any) -> Iterator[Piece]:
        yield Piece("half", 1, 1)
        raise CheckpointError("out of order")

    async def run() -> None:
        async with pool_of(memory=100) as (pool, _):
            answer = pool.answer("a", fails)
            assert (await anext(answer)).text == "half"
            with pytest.raises(CheckpointError):
                await anext(answer)
            assert await ask(pool, "a") == "a"

    asyncio.run(run())
