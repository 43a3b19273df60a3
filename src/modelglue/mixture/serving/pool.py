"""Experts in this process: loaded when they are asked for, unloaded when others need the room.

Each expert has a queue and one thread, and answers one request at a time: tokens of two answers
side by side take each about twice as long, and memory for both. Experts work beside one another.

When an expert needs room, the one that was used the longest ago leaves, one that is idle first. One
at work first answers those that waited for it when it was asked to leave: then experts that share
too little memory are changed once a queue, and not once a request.
"""

import asyncio
import gc
import itertools
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.serving.refusals import queue_full
from modelglue.mixture.serving.writing import Piece

Work = Callable[[HuggingFaceModel], Iterator[Piece]]
Load = Callable[[Path], HuggingFaceModel]
Watch = Callable[[str, str, int], None]
"""Told of (expert, "load" or "unload", bytes)."""


@dataclass(eq=False)
class Job:
    """A request in a queue; its pieces come as they are written, None after the last."""

    work: Work
    pieces: asyncio.Queue[Piece | Exception | None] = field(default_factory=asyncio.Queue)
    gone: bool = False


@dataclass(eq=False)
class _Lane:
    """One expert.

    Args:
        nbytes: of its weights; from the checkpoint's header until it was loaded once.
        used: when it was last asked, by a clock that counts requests.
        grace: how many requests a leaving expert still answers.
        seconds: what a request took, a moving mean.
    """

    name: str
    path: Path
    nbytes: int
    thread: ThreadPoolExecutor
    jobs: deque[Job] = field(default_factory=deque)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    model: HuggingFaceModel | None = None
    job: Job | None = None
    used: int = 0
    leaving: bool = False
    grace: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    seconds: float = 1.0

    @property
    def waiting(self) -> int:
        return len(self.jobs)

    @property
    def idle(self) -> bool:
        return self.job is None and not self.jobs


class ExpertPool:
    """The experts of a bundle, within a budget.

    Args:
        folders: of the experts, by name.
        sizes: bytes of their weights.
        memory: bytes that the weights of loaded experts may take in all; at least the largest's.
        queue: requests that may wait for an expert.
        load: makes a model of a folder.
        watch: told of every expert that comes or goes.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        sizes: Mapping[str, int],
        memory: int,
        queue: int,
        load: Load,
        watch: Watch,
    ) -> None:
        self._memory = memory
        self._queue = queue
        self._load = load
        self._watch = watch
        self._lanes = {
            name: _Lane(
                name,
                folder,
                sizes[name],
                ThreadPoolExecutor(1, thread_name_prefix=f"expert-{name}"),
            )
            for name, folder in folders.items()
        }
        self._clock = itertools.count(1)
        self._changing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to take jobs; inside the event loop that will answer."""
        self._tasks = [asyncio.create_task(self._serve(lane)) for lane in self._lanes.values()]

    async def close(self) -> None:
        """End all work, and wait until no thread is in a model."""
        for lane in self._lanes.values():
            if lane.job is not None:
                lane.job.gone = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self._lanes.values():
            await asyncio.to_thread(lane.thread.shutdown)

    def loaded(self, name: str) -> bool:
        """Whether an expert is in memory."""
        return self._lanes[name].model is not None

    def waiting(self, name: str) -> int:
        """How many requests wait for an expert."""
        return self._lanes[name].waiting

    async def answer(self, name: str, work: Work) -> AsyncGenerator[Piece, None]:
        """Let an expert work; its pieces as they come.

        Closing the generator ends the work at the next token, or takes it out of the queue.

        Raises:
            Refusal: the queue is full.
            Exception: whatever loading or working raised.
        """
        lane, job = self._lanes[name], Job(work)
        if lane.waiting >= self._queue:
            seconds = min(60, max(1, math.ceil(lane.seconds * lane.waiting)))
            raise queue_full(
                f"{lane.waiting} requests wait for expert {name!r}", retry_after=seconds
            )
        lane.jobs.append(job)
        lane.asked.set()
        try:
            while (piece := await job.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            job.gone = True
            if job in lane.jobs:
                lane.jobs.remove(job)
                self._leave_if_done(lane)
            elif lane.job is job and lane.model is None:
                self._look_again()

    async def _serve(self, lane: _Lane) -> None:
        """Answer what is asked of an expert, one request after the other."""
        loop = asyncio.get_running_loop()
        while True:
            while not lane.jobs:
                lane.asked.clear()
                await lane.asked.wait()
            lane.job = job = lane.jobs.popleft()
            started = loop.time()
            try:
                await self._resident(lane, job)
                await loop.run_in_executor(lane.thread, _run, lane, job, loop)
            except Exception as error:  # noqa: BLE001  (it goes to whoever asked)
                job.pieces.put_nowait(error)
            else:
                lane.seconds += 0.2 * (loop.time() - started - lane.seconds)
            lane.job = None
            lane.grace -= 1
            self._leave_if_done(lane)

    def _leave_if_done(self, lane: _Lane) -> None:
        """Unload an expert that was asked to leave when all have been answered, or have left."""
        if lane.leaving and (lane.idle or (lane.job is None and lane.grace <= 0)):
            self._unload(lane)

    async def _resident(self, lane: _Lane, job: Job) -> None:
        """See to it that an expert is in memory, unless nobody waits for it any more."""
        if lane.model is None:
            # Whoever needs room waits for its turn: two could wait for each other's.
            async with self._changing:
                await self._make_room(lane, job)
                if job.gone:  # it may have been a long wait
                    return
                loop = asyncio.get_running_loop()
                lane.model = await loop.run_in_executor(lane.thread, self._load, lane.path)
                lane.nbytes = _nbytes(lane.model)
                self._watch(lane.name, "load", lane.nbytes)
        lane.used = next(self._clock)

    async def _make_room(self, lane: _Lane, job: Job) -> None:
        """Let others leave until there is room, or nobody waits for it any more."""
        while not job.gone:
            loaded = [other for other in self._lanes.values() if other.model is not None]
            if not loaded or sum(o.nbytes for o in loaded) + lane.nbytes <= self._memory:
                return
            oldest = min(loaded, key=lambda other: (not other.idle, other.used))
            if oldest.idle:
                self._unload(oldest)
            elif not oldest.leaving:
                oldest.leaving = True
                oldest.grace = oldest.waiting + (oldest.job is not None)
            while oldest.model is not None and not job.gone:
                oldest.left.clear()
                await oldest.left.wait()
            oldest.leaving = False  # it has left, or nobody needs its room any more

    def _look_again(self) -> None:
        """Wake who makes room: it may be for somebody who has left."""
        for lane in self._lanes.values():
            lane.left.set()

    def _unload(self, lane: _Lane) -> None:
        lane.model = None
        lane.leaving = False
        gc.collect()  # modules refer to themselves, and the collector may be slow to come
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._watch(lane.name, "unload", lane.nbytes)
        lane.left.set()


def _run(lane: _Lane, job: Job, loop: asyncio.AbstractEventLoop) -> None:
    """In the expert's thread: work, and hand the pieces over."""
    model = lane.model
    if model is None:  # whoever asked has left
        return

    def tell(piece: Piece | Exception | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(job.pieces.put_nowait, piece)

    for piece in job.work(model):
        if job.gone:
            return
        tell(piece)
    tell(None)


def _nbytes(model: HuggingFaceModel) -> int:
    tensors = itertools.chain(model.module.parameters(), model.module.buffers())
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
