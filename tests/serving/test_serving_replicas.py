"""Dead replicas are left alone, work is spread, and whoever waits is woken."""

import asyncio
from typing import Any

import pytest

from modelglue.mixture.serving.refusals import Refusal
from modelglue.mixture.serving.replicas import Replica, Replicas


def group(urls: str = "a b", **options: Any) -> tuple[Replicas, list[tuple[str, bool]]]:
    seen: list[tuple[str, bool]] = []
    replicas = Replicas(
        "maths",
        urls.split(),
        watch=lambda url, live: seen.append((url, live)),
        **{"concurrent": 2, "queue": 2, "failures": 2, "probe_seconds": 3.0, **options},
    )
    return replicas, seen


def test_work_is_spread_evenly() -> None:
    async def run() -> list[str]:
        replicas, _ = group("a b c")
        return [(await replicas.lease()).url for _ in range(6)]

    assert asyncio.run(run()) == ["a", "b", "c", "a", "b", "c"]


def test_a_replica_that_failed_at_a_request_is_not_asked_again() -> None:
    async def run() -> None:
        replicas, _ = group()
        first = await replicas.lease()
        assert (await replicas.lease(without=[first])).url == "b"
        with pytest.raises(Refusal) as caught:
            await replicas.lease(without=replicas.all)
        assert (caught.value.status, caught.value.retry_after) == (503, 3)

    asyncio.run(run())


def test_one_that_takes_no_connection_is_dead_at_once_and_lives_again_after_a_probe() -> None:
    replicas, seen = group()
    first = replicas.all[0]
    replicas.failed(first, refused=True)
    assert (first.live, replicas.live) == (False, 1)
    replicas.succeeded(first)
    assert (first.live, replicas.live) == (True, 2)
    assert seen == [("a", True), ("b", True), ("a", False), ("a", True)]


def test_failures_count_in_a_row() -> None:
    replicas, _ = group()
    first = replicas.all[0]
    for _ in range(3):
        replicas.failed(first, refused=False)
        replicas.succeeded(first)
    assert first.live
    replicas.failed(first, refused=False)
    replicas.failed(first, refused=False)
    assert not first.live


def test_beyond_what_replicas_take_requests_wait_and_beyond_the_queue_they_are_refused() -> None:
    async def run() -> None:
        replicas, _ = group("a")
        leased = [await replicas.lease() for _ in range(2)]
        waiting = [asyncio.create_task(replicas.lease()) for _ in range(2)]
        await asyncio.sleep(0)
        assert replicas.waiting() == 2
        with pytest.raises(Refusal) as caught:
            await replicas.lease()
        assert caught.value.status == 429
        for replica in leased:
            replicas.release(replica)
        await asyncio.gather(*waiting)
        assert (replicas.waiting(), replicas.all[0].active) == (0, 2)

    asyncio.run(run())


def test_who_leaves_while_waiting_takes_nobodys_turn() -> None:
    async def run() -> None:
        replicas, _ = group("a", concurrent=1)
        replica = await replicas.lease()
        gone, stays = (asyncio.create_task(replicas.lease()) for _ in range(2))
        await asyncio.sleep(0)
        replicas.release(replica)
        gone.cancel()
        assert (await asyncio.wait_for(stays, 1)).url == "a"

    asyncio.run(run())


@pytest.mark.parametrize("leaves", ["before", "after"])
def test_whose_turn_comes_as_it_leaves_gives_it_back(leaves: str) -> None:
    async def run() -> None:
        replicas, _ = group("a", concurrent=1)
        replica = await replicas.lease()
        gone = asyncio.create_task(replicas.lease())
        await asyncio.sleep(0)
        if leaves == "before":
            gone.cancel()
        replicas.release(replica)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert (replicas.waiting(), replica.active) == (0, 0)

    asyncio.run(run())


def test_who_comes_later_goes_before_nobody_and_past_no_bound() -> None:
    async def run() -> None:
        replicas, _ = group("a", concurrent=1, queue=2)
        order: list[int] = []

        async def ask(number: int) -> None:
            await replicas.lease()
            order.append(number)

        replica = await replicas.lease()
        waiting = [asyncio.create_task(ask(number)) for number in range(2)]
        await asyncio.sleep(0)
        for number in range(2):
            replicas.release(replica)
            # The first that waits has its turn, though it has not run yet; the other waits on.
            assert (replicas.waiting(), replica.active) == (1, 1)
            late = asyncio.create_task(ask(number + 2))
            waiting.append(late)
            await asyncio.sleep(0)
            assert late.done() is False
        with pytest.raises(Refusal, match="2 requests wait"):
            await replicas.lease()
        for _ in range(2):
            replicas.release(replica)
        await asyncio.gather(*waiting)
        assert order == [0, 1, 2, 3]

    asyncio.run(run())


def test_who_waits_for_another_replica_keeps_nobody_waiting() -> None:
    async def run() -> None:
        replicas, _ = group("a b", concurrent=1)
        first, second = [await replicas.lease() for _ in range(2)]
        picky = asyncio.create_task(replicas.lease(without=[first]))
        easy = asyncio.create_task(replicas.lease())
        await asyncio.sleep(0)
        replicas.release(first)
        assert await asyncio.wait_for(easy, 1) is first
        assert not picky.done()
        replicas.release(second)
        assert await asyncio.wait_for(picky, 1) is second

    asyncio.run(run())


def test_whoever_waits_for_the_last_replica_hears_of_its_death() -> None:
    async def run() -> None:
        replicas, _ = group("a", concurrent=1)
        replica = await replicas.lease()
        waiting = asyncio.create_task(replicas.lease())
        await asyncio.sleep(0)
        replicas.failed(replica, refused=True)
        with pytest.raises(Refusal):
            await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


def test_under_load_every_lease_is_kept_within_bounds() -> None:
    async def run() -> None:
        replicas, _ = group("a b c", concurrent=3, queue=500)
        most: dict[Replica, int] = {}

        async def work() -> None:
            replica = await replicas.lease()
            most[replica] = max(most.get(replica, 0), replica.active)
            await asyncio.sleep(0)
            replicas.release(replica)

        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(400))), 10)
        assert set(most.values()) == {3}
        assert not any(replica.active for replica in replicas.all)

    asyncio.run(run())
