"""Which items go through a model together, and how they are laid out there.

A plan depends on the items and on the model's kind, not on its weights: a search makes it once for
each module and each block of items.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, TypeVar

import torch

from modelglue.evaluate.devices import input_device
from modelglue.evaluate.encoding import Continued, Tokens
from modelglue.evaluate.kvcache import turned, turns
from modelglue.evaluate.tree import Item, Rows, families, filled, lay_out, trees

# Tokens of one batch. More would not be faster on a CPU, where it is the caches that count.
_CPU_TOKENS, _GPU_TOKENS = 768, 32768
# Tokens of a row behind a prefix: enough to fill the processor, few enough that little is spent on
# columns that a place does not see.
_CPU_ROW, _GPU_ROW = 256, 2048
# Logits held at once, as numbers: 512 MB of fp32.
_MOST_LOGITS = 1 << 27

BatchSize = int | Literal["auto"]
Layout = Literal["plain", "tree", "prefix"]
Value = TypeVar("Value")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Pass:
    """Items that go through a model together.

    Attributes:
        rows: of one forward pass each.
        slots: the number, among the continuations of all items, of each one in the rows.
        layout: "plain" rows need no mask; those of a "tree" and behind a "prefix" do.
        prefix: the tokens that all rows begin with and lack, to be computed before.
    """

    rows: tuple[Rows, ...]
    slots: tuple[int, ...]
    layout: Layout
    prefix: Tokens = ()

    @property
    def numbers(self) -> int:
        """How many numbers its tensors hold: four a column, two a place where logits are wanted."""
        return sum(4 * rows.ids.numel() + 2 * len(rows.places) for rows in self.rows)


@dataclass(frozen=True)
class Placed:
    """An item and the numbers of its continuations among those of all items."""

    item: Item
    slots: tuple[int, ...]


def placed(items: Sequence[Item]) -> list[Placed]:
    """The items with their continuations numbered, one after another."""
    number = count()
    return [Placed(item, tuple(next(number) for _ in item.continuations)) for item in items]


class Planner:
    """Plans for one model.

    Args:
        module: the model.
        takes: whether its attention is right about a layout, for items as deep as these.
    """

    def __init__(self, module: Any, takes: Callable[[Layout, Sequence[Item]], bool]) -> None:
        self._module, self._takes = module, takes
        self._config = module.config.get_text_config()
        # A mixture that decides once a sample: on the context, whatever the continuations are.
        self.routes_samples = bool(getattr(module.config, "routes_samples", False))

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return input_device(self._module)

    def plan(
        self, contexts: Sequence[tuple[Continued, ...]], batch_size: BatchSize
    ) -> Iterator[Pass]:
        """Passes that score every continuation of every context once.

        Args:
            batch_size: items of a batch, or of a row behind a prefix.
        """
        width, parts = self._config.hidden_size, turns(self._config)
        items = [item for each in contexts for item in trees(each, width, parts=parts)]
        # The longest first, and none beside those that would be turned in another way by it, or
        # are routed in another.
        order = sorted(placed(items), key=lambda one: -one.item.length)
        for (turn, _), group in _grouped(order, lambda one: self._way(one.item)):
            # A beginning is read alone, and would be turned as a short text; items of one row
            # would share a route.
            alone = any(turn) or self.routes_samples
            rest = dict(enumerate(group))
            for members, shared in [] if alone else families([one.item for one in group]):
                family = [group[n] for n in sorted(members)]
                if self._takes("prefix", [one.item for one in family]):
                    yield self.behind(family, shared, batch_size)
                    for n in members:
                        del rest[n]
            for batch in self._batches(list(rest.values()), batch_size):
                items_of_it = [one.item for one in batch]
                if all(item.is_plain for item in items_of_it):
                    yield self._together(batch, "plain")
                elif self._takes("tree", items_of_it):
                    yield self.tree(batch)
                else:
                    yield from self.plain(batch, batch_size)

    def behind(self, family: Sequence[Placed], shared: int, batch_size: BatchSize) -> Pass:
        """Items behind the `shared` tokens that all of them begin with."""
        capacity = self._on_this_device(_CPU_ROW, _GPU_ROW)
        most = None if batch_size == "auto" else batch_size
        lengths = [one.item.length - shared for one in family]
        rows = [family[row] for row in filled(lengths, capacity, most)]
        return Pass(
            tuple(Rows([[p.item for p in row]], self.device, skipped=shared) for row in rows),
            tuple(slot for one in family for slot in one.slots),
            "prefix",
            family[0].item.trunk[:shared],
        )

    def tree(self, batch: Sequence[Placed]) -> Pass:
        """A row an item."""
        return self._together(batch, "tree")

    def plain(self, items: Sequence[Placed], batch_size: BatchSize) -> Iterator[Pass]:
        """One row a continuation, padded on the right, which a causal model never looks at."""
        alone = [
            Placed(lay_out([continued]), (slot,))
            for one in items
            for continued, slot in zip(one.item.continuations, one.slots, strict=True)
        ]
        order = sorted(alone, key=lambda one: -one.item.length)
        for batch in self._batches(order, batch_size):
            yield self._together(batch, "plain")

    def _together(self, batch: Sequence[Placed], layout: Layout) -> Pass:
        rows = Rows([[one.item] for one in batch], self.device)
        return Pass((rows,), tuple(slot for one in batch for slot in one.slots), layout)

    def _way(self, item: Item) -> tuple[tuple[bool, ...], Tokens]:
        """What items of one batch have in common."""
        opening = item.opening if self.routes_samples else ()
        return turned(self._config, item.depth), opening

    def _batches(
        self, items: Sequence[Placed], batch_size: BatchSize
    ) -> Iterator[Sequence[Placed]]:
        """Parts of items of falling length, so that little of a batch is padding."""
        tokens = self._on_this_device(_CPU_TOKENS, _GPU_TOKENS)
        start = 0
        while start < len(items):
            longest = max(1, items[start].item.length)
            rows = batch_size if batch_size != "auto" else max(1, tokens // longest)
            yield items[start : start + rows]
            start += rows

    def _on_this_device(self, cpu: int, gpu: int) -> int:
        """As many tokens, but for a vocabulary whose logits would not fit."""
        tokens = cpu if self.device.type == "cpu" else gpu
        return min(tokens, max(1, _MOST_LOGITS // int(self._config.vocab_size)))


def _grouped(values: Sequence[Value], key: Callable[[Value], Key]) -> list[tuple[Key, list[Value]]]:
    """The values by their key, each group in their order."""
    groups: dict[Key, list[Value]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return list(groups.items())
