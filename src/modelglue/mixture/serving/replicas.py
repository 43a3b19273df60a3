"""The servers of one expert: who is alive, who has room, who is asked next.

A replica that takes no connection, or fails several times in a row, gets no requests until a probe
finds it alive: requests don't pay for a dead server more than once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from modelglue.mixture.serving.refusals import Refusal, queue_full

Watch = Callable[[str, bool], None]
"""Told of (address, alive)."""


@dataclass(eq=False)
class Replica:
    """One server.

    Attributes:
        url: ends in `/v1`.
        active: requests that it is at work on for us.
        failures: in a row.
        asked: when it was last, by a clock that counts requests.
    """

    url: str
    live: bool = True
    active: int = 0
    failures: int = 0
    asked: int = 0


@dataclass(eq=False)
class _Waiting:
    """A request that waits.

    Attributes:
        turn: comes with a replica that has been taken for it.
        without: replicas that won't do.
    """

    turn: asyncio.Future[Replica]
    without: Collection[Replica]


class Replicas:
    """All servers of an expert.

    Args:
        concurrent: requests at once to each.
        queue: requests that may wait for one with room.
        failures: in a row, after which a replica counts as dead.
        probe_seconds: until a dead replica is looked at again; what clients are told to wait.
        watch: told of every replica that comes or goes.
    """

    def __init__(
        self,
        name: str,
        urls: Sequence[str],
        *,
        concurrent: int,
        queue: int,
        failures: int,
        probe_seconds: float,
        watch: Watch,
    ) -> None:
        self.all = tuple(Replica(url) for url in urls)
        self._name = name
        self._concurrent = concurrent
        self._queue = queue
        self._failures = failures
        self._probe_seconds = probe_seconds
        self._watch = watch
        self._waiting: deque[_Waiting] = deque()
        self._clock = 0
        for replica in self.all:
            watch(replica.url, True)

    @property
    def live(self) -> int:
        """How many get requests."""
        return sum(replica.live for replica in self.all)

    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def lease(self, *, without: Collection[Replica] = ()) -> Replica:
        """The replica to ask: of those alive and with room, the one with the least to do.

        Whoever leases gives back with `release`.

        Args:
            without: those that have failed at this request.

        Raises:
            Refusal: none is alive, or too many requests wait.
        """
        # What has room for us, nobody who waits can use: they were asked first.
        if (chosen := self._taken(without)) is not None:
            return chosen
        if len(self._waiting) >= self._queue:
            raise queue_full(f"{len(self._waiting)} requests wait for expert {self._name!r}")
        own = _Waiting(asyncio.get_running_loop().create_future(), without)
        self._waiting.append(own)
        try:
            return await own.turn
        except asyncio.CancelledError:
            if own in self._waiting:
                self._waiting.remove(own)
            elif not own.turn.cancelled() and own.turn.exception() is None:
                self.release(own.turn.result())  # its turn came as it left
            raise

    def release(self, replica: Replica) -> None:
        """Give a leased replica back."""
        replica.active -= 1
        self._hand_out()

    def succeeded(self, replica: Replica) -> None:
        """Note that a replica answered."""
        replica.failures = 0
        if not replica.live:
            replica.live = True
            self._watch(replica.url, True)
            self._hand_out()

    def failed(self, replica: Replica, *, refused: bool) -> None:
        """Note that a replica did not answer; `refused`: it took no connection."""
        replica.failures += 1
        if replica.live and (refused or replica.failures >= self._failures):
            replica.live = False
            self._watch(replica.url, False)
            # Those that waited for it alone are to hear so.
            self._hand_out()

    def _taken(self, without: Collection[Replica]) -> Replica | None:
        """A replica with room, taken; None if all are busy.

        Raises:
            Refusal: none is alive.
        """
        usable = [r for r in self.all if r.live and r not in without]
        if not usable:
            raise Refusal(
                503,
                f"no server of expert {self._name!r} answers",
                code="no_replica",
                retry_after=max(1, round(self._probe_seconds)),
            )
        free = [r for r in usable if r.active < self._concurrent]
        if not free:
            return None
        chosen = min(free, key=lambda replica: (replica.active, replica.asked))
        chosen.active += 1
        self._clock += 1
        chosen.asked = self._clock
        return chosen

    def _hand_out(self) -> None:
        """Give room to those that wait, in their order: not every replica will do for each."""
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            if one.turn.done():  # it has left
                continue
            try:
                chosen = self._taken(one.without)
            except Refusal as refusal:
                one.turn.set_exception(refusal)
                continue
            if chosen is None:
                self._waiting.append(one)
            else:
                one.turn.set_result(chosen)
