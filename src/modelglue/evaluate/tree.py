"""Items laid out for a model: what continuations share stands once, and what items share, too.

An item is a trunk, the tokens that its continuations share, and one branch a continuation. Several
items may stand in one row, behind a beginning that all of them have in common (few-shot examples,
say), which is then computed once for all:

    examples | the sky is | blue today | grey | the grass is | green | tall
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from modelglue.evaluate.encoding import Continued, Tokens

# (Σ log p, tokens, every token is the most likely one)
Found = tuple[float, int, bool]
# A shared beginning is computed apart if that saves so many tokens at least, and this share of what
# is left to compute: it costs a forward pass of its own, and rows in which most columns are masked.
_SAVED_TOKENS, _SAVED_SHARE = 256, 0.25
# Shorter beginnings are never looked at.
_SHORTEST = 16


@dataclass(frozen=True)
class Item:
    """A context with its continuations.

    Attributes:
        continuations: what it was made of.
        trunk: the tokens that all continuations' inputs begin with.
        branches: what each input adds to it.
        starts: the place in trunk + branch of the first logits wanted, one a continuation.
        targets: the tokens that those and the logits after them should predict.
    """

    continuations: Sequence[Continued]
    trunk: Tokens
    branches: tuple[Tokens, ...]
    starts: tuple[int, ...]
    targets: tuple[Tokens, ...]

    @property
    def length(self) -> int:
        """How many tokens are computed."""
        return len(self.trunk) + sum(map(len, self.branches))

    @property
    def depth(self) -> int:
        """The tokens of the longest continuation's input, the trunk included."""
        return len(self.trunk) + max(map(len, self.branches))

    @property
    def is_plain(self) -> bool:
        """Whether no place needs another mask than the causal one."""
        return sum(map(bool, self.branches)) < 2

    @property
    def opening(self) -> Tokens:
        """See `Continued`."""
        return self.continuations[0].opening

    @property
    def head(self) -> Tokens:
        """The tokens before the first logits wanted, as far as continuations share them."""
        return self.trunk[: min(self.starts)]


def lay_out(continuations: Sequence[Continued]) -> Item:
    """The item of a context with at least one continuation.

    The last token of a continuation predicts nothing that is asked for, and stays out.
    """
    inputs = [continued.tokens[:-1] for continued in continuations]
    shared = shared_length(
        min(inputs), max(inputs)
    )  # what first and last in order share, all share
    return Item(
        continuations,
        inputs[0][:shared],
        tuple(row[shared:] for row in inputs),
        tuple(continued.start - 1 for continued in continuations),
        tuple(continued.tokens[continued.start :] for continued in continuations),
    )


def trees(
    continuations: Sequence[Continued], width: int, *, parts: Sequence[int] = ()
) -> tuple[Item, ...]:
    """The continuations as one item, or each alone where that costs less: cut ones share little.

    Args:
        width: of the model's hidden states. A token's matrices then cost as much as its attention
            to about six times as many columns.
        parts: lengths that part inputs which may not stand in one batch.
    """

    def cost(length: int) -> float:
        return length * (1 + length / (6 * width))

    if not continuations:
        return ()
    together = lay_out(continuations)
    lengths = [len(continued.tokens) - 1 for continued in continuations]
    fit = all(max(lengths) <= part or min(lengths) > part for part in parts)
    if fit and cost(together.length) <= sum(map(cost, lengths)):
        return (together,)
    return tuple(lay_out((continued,)) for continued in continuations)


def families(items: Sequence[Item]) -> list[tuple[list[int], int]]:
    """Groups of items, by index, with the length of a beginning that is worth computing once.

    Where some members share more than all do (as many examples, on another subject), they are
    groups of their own if that saves more.
    """
    heads = [item.head for item in items]
    order = sorted(range(len(items)), key=heads.__getitem__)
    shared = [shared_length(heads[a], heads[b]) for a, b in pairwise(order)]
    found = []
    stack = [range(len(items))]
    while stack:
        group = stack.pop()
        if len(group) < 2:
            continue
        length = min(shared[group.start : group.stop - 1])
        parts = _parts(group, shared, length)
        saved = _saved(group, shared)
        if sum(_saved(part, shared) for part in parts) > saved or length < _SHORTEST:
            stack += parts
            continue
        members = [order[i] for i in group]
        left = sum(items[i].length - length for i in members)
        if saved > _SAVED_SHARE * left:
            found.append((members, length))
    return found


def _parts(group: range, shared: Sequence[int], length: int) -> list[range]:
    """The group cut wherever neighbours share no more than all do."""
    cuts = [i + 1 for i in group[:-1] if shared[i] == length]
    return [range(a, b) for a, b in pairwise([group.start, *cuts, group.stop])]


def _saved(group: range, shared: Sequence[int]) -> int:
    """The tokens that computing a group's beginning once would save, if they are enough."""
    if len(group) < 2:
        return 0
    saved = min(shared[group.start : group.stop - 1]) * (len(group) - 1)
    return saved if saved >= _SAVED_TOKENS else 0


def filled(lengths: Sequence[int], capacity: int, most: int | None = None) -> Iterator[slice]:
    """Neighbours that go together into a row of so many tokens; what is longer stands alone.

    Args:
        most: items of a row.
    """
    start = used = 0
    for i, length in enumerate(lengths):
        if i > start and (used + length > capacity or i - start == most):
            yield slice(start, i)
            start, used = i, 0
        used += length
    if start < len(lengths):
        yield slice(start, len(lengths))


class Rows:
    """Rows of items as tensors, without the first `skipped` tokens of each item.

    Attributes:
        ids: tokens, [rows, width].
        positions: how many tokens come before each in its text, [rows, width].
        places: where logits are wanted, in the flattened rows; item after item, continuation
            after continuation.
        targets: the token that each of them should predict.
    """

    def __init__(self, rows: Sequence[Sequence[Item]], device: Any, *, skipped: int = 0) -> None:
        self.items = [item for row in rows for item in row]
        self._skipped, self._device = skipped, device
        width = max(sum(item.length - skipped for item in row) for row in rows)
        places: list[int] = []
        columns = [_Columns() for _ in rows]
        for n, row in enumerate(rows):
            for item in row:
                places += [n * width + place for place in columns[n].take(item, skipped)]
        self.places = torch.tensor(places, dtype=torch.long, device=device)
        self.targets = torch.tensor(
            [t for item in self.items for targets in item.targets for t in targets],
            dtype=torch.long,
            device=device,
        )
        numbers = [[one.ids, one.positions, one.parts, one.trunks] for one in columns]
        padded = [[part + [0] * (width - len(part)) for part in one] for one in numbers]
        self.ids, self.positions, self._parts, self._trunks = torch.tensor(
            padded, device=device
        ).unbind(dim=1)

    @property
    def contexts(self) -> Tensor:
        """1 where a token is of the context of its row's only item, [rows, width]."""
        known = [min(min(item.starts) + 1, len(item.trunk)) for item in self.items]
        columns = torch.arange(self.ids.shape[1], device=self._device)
        return (columns < torch.tensor(known, device=self._device)[:, None]).long()

    def mask(self, dtype: torch.dtype, window: int = 0) -> Tensor:
        """What is added to attention logits: 0 for what a place sees, else the least number.

        A branch sees its trunk and itself; padding sees padding, since NaN comes of seeing nothing.

        Args:
            window: how many positions back; 0 for all. It counts positions, not columns.

        Returns:
            [rows, 1, width, columns]: the skipped tokens, then the row.
        """
        width, least = self.ids.shape[1], torch.finfo(dtype).min
        later = torch.ones(width, width, dtype=torch.bool, device=self._device).triu(1)
        part, position = self._parts[:, None, :], self.positions[:, :, None]
        hidden = (part != self._parts[:, :, None]) & (part != self._trunks[:, :, None]) | later
        mask = torch.zeros(
            (len(self.ids), width, self._skipped + width), dtype=dtype, device=self._device
        )
        if window:
            hidden |= position - self.positions[:, None, :] >= window
            skipped = torch.arange(self._skipped, device=self._device)
            mask[:, :, : self._skipped].masked_fill_(position - skipped >= window, least)
        mask[:, :, self._skipped :].masked_fill_(hidden, least)
        return mask[:, None]

    def split(self, numbers: Sequence[float], greedy: Sequence[bool]) -> list[list[Found]]:
        """What was found at all places, as one result a continuation of each item."""
        found = []
        start = 0
        for item in self.items:
            of_item = []
            for targets in item.targets:
                part = slice(start, start + len(targets))
                of_item.append((sum(numbers[part]), len(targets), all(greedy[part])))
                start += len(targets)
            found.append(of_item)
        return found


class _Columns:
    """One row as it fills: its parts are numbered from 1, each with the number of its trunk."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.parts: list[int] = []
        self.trunks: list[int] = []
        self._last = 0

    def take(self, item: Item, skipped: int) -> list[int]:
        """Put an item at the end; the columns where its logits are wanted."""
        trunk, depth = self._last + 1, len(item.trunk)
        start = len(self.ids) - skipped  # the column of the item's place 0
        self._put(item.trunk[skipped:], skipped, trunk)
        wanted: list[int] = []
        for branch, first, targets in zip(item.branches, item.starts, item.targets, strict=True):
            shift = len(self.ids) - depth  # from a place of the branch to its column
            self._put(branch, depth, trunk)
            places = range(first, first + len(targets))
            wanted += [place + (start if place < depth else shift) for place in places]
        return wanted

    def _put(self, tokens: Tokens, position: int, trunk: int) -> None:
        self._last += 1
        self.ids += tokens
        self.positions += range(position, position + len(tokens))
        self.parts += [self._last] * len(tokens)
        self.trunks += [trunk] * len(tokens)


def shared_length(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with, found by halving: slices are compared faster than tokens."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    low = 0
    while low + 1 < most:
        middle = (low + most) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            most = middle
    return low
