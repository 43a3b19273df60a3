"""Replicas looked at in the background, so that a dead one costs no request."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from modelglue.mixture.serving.access import FAILURES
from modelglue.mixture.serving.replicas import Replica, Replicas
from modelglue.mixture.serving.upstream_config import Upstreams


@asynccontextmanager
async def probing(
    upstreams: Upstreams, groups: Mapping[str, Replicas], client: httpx.AsyncClient
) -> AsyncIterator[None]:
    """Ask every replica for a sign of life at regular times, as long as the block lasts."""

    async def watch(group: Replicas, replica: Replica) -> None:
        address = replica.url.removesuffix("/v1") + upstreams.probe.path
        while True:
            await asyncio.sleep(upstreams.probe.every)
            try:
                response = await client.get(address, timeout=upstreams.timeouts.connect)
            except httpx.HTTPError as error:
                group.failed(replica, refused=isinstance(error, httpx.ConnectError))
                continue
            except Exception:  # noqa: BLE001  (a probe that ends would leave its replica for dead)
                FAILURES.exception("probe of %s", address)
                continue
            if response.status_code < 500:
                group.succeeded(replica)
            else:
                group.failed(replica, refused=False)

    tasks = [
        asyncio.create_task(watch(group, replica))
        for group in groups.values()
        for replica in group.all
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
