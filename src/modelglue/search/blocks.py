"""Search items cut into blocks, so that candidates can be compared on a few before the rest.

Each block but the first is as large as all before it together, so every look at a race knows twice
as much as the one before, and a candidate that runs to the end is asked for a few times only: small
batches are slow ones. Blocks of equal size, five or eight of them, save no more items (simulated).

Every block has a like share of every task's items, drawn by a hash of their groups: neither the
order of a file nor a seed matters, and items that stand or fall together stay together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

from modelglue.evaluate.scores import Scores, TaskScores, chained


@dataclass(frozen=True)
class Blocks:
    """Which block each item is in.

    Attributes:
        places: task → item's id → its block; tasks and items in their order.
    """

    places: Mapping[str, Mapping[str, int]]

    @cached_property
    def items(self) -> tuple[int, ...]:
        """The number of items of each block."""
        blocks = [block for places in self.places.values() for block in places.values()]
        return tuple(blocks.count(block) for block in range(max(blocks) + 1))

    def fits(self, scores: Scores, block: int | None) -> bool:
        """Whether these are the scores of exactly the items of a block (None: of all)."""
        ids = {task: self._ids(task, block) for task in self.places}
        return ids == {task.task: task.items for task in scores.tasks}

    def part(self, scores: Scores, block: int) -> Scores:
        """What a candidate scored on a block, of its scores on all items."""
        tasks = (scores[name] for name in self.places)
        return Scores(tuple(_pick(task, self._ids(task.task, block)) for task in tasks))

    def join(self, parts: Sequence[Scores]) -> Scores:
        """The scores on all items, in their order, of those on every block."""
        return Scores(
            tuple(
                _pick(chained([part[name] for part in parts]), self._ids(name, None))
                for name in self.places
            )
        )

    def _ids(self, task: str, block: int | None) -> tuple[str, ...]:
        return tuple(i for i, place in self.places[task].items() if block in (None, place))


def cut(groups: Mapping[str, Mapping[str, str]], count: int) -> Blocks:
    """Deal out the groups of every task, by their hash, to blocks of rising size.

    Args:
        groups: task → item's id → its group; tasks and items in their order.
        count: how many blocks; fewer where a task has not so many groups that the first block, of
            a part in 2 ** (count − 1), has one of them.

    >>> blocks = cut({"maths": {"1": "a", "2": "b", "3": "a", "4": "c", "5": "d"}}, 3)
    >>> blocks.items, blocks.places["maths"]["1"] == blocks.places["maths"]["3"]
    ((1, 1, 3), True)
    """
    fewest = min(len(set(of.values())) for of in groups.values())
    parts = [1, *(2**n for n in range(min(count, fewest.bit_length()) - 1))]
    return Blocks({task: _deal(task, of, parts) for task, of in groups.items()})


def _deal(task: str, groups: Mapping[str, str], parts: Sequence[int]) -> dict[str, int]:
    size = Counter(groups.values())
    held = [0] * len(parts)
    place = {}
    # The large groups first: what is small evens out what they leave uneven.
    for group in sorted(size, key=lambda group: (-size[group], _hash(task, group))):
        place[group] = min(range(len(parts)), key=lambda n: (held[n] / parts[n], -n))
        held[place[group]] += size[group]
    return {item: place[group] for item, group in groups.items()}


def _hash(task: str, group: str) -> bytes:
    # Apart from the hash that sets items aside, which would give blocks of a part of its values.
    return blake2b(f"{task}\0{group}".encode(), digest_size=8, person=b"block").digest()


def _pick(scores: TaskScores, ids: Sequence[str]) -> TaskScores:
    """The scores of these items, in this order."""
    at = {item: index for index, item in enumerate(scores.items)}
    chosen = [at[item] for item in ids]
    return replace(
        scores,
        items=tuple(ids),
        values=tuple(scores.values[index] for index in chosen),
        groups=tuple(scores.groups[index] for index in chosen),
        metrics={
            name: tuple(column[index] for index in chosen)
            for name, column in scores.metrics.items()
        },
    )
