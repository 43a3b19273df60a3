"""A key-value cache that is written in place and can lose rows.

transformers' own dynamic cache copies everything at every token; for small models that is most of
a decoding step. Here each layer has its room from the start, and a step writes one column.
Sliding layers keep all columns: the mask says what they see.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from modelglue.evaluate.devices import input_device

# What models call the length of a window that counts columns, or whose parts see no other part.
_WINDOWS = ("attention_chunk_size", "window_size", "attention_window_size")


class KeyValueCache:
    """The cache of one batch.

    Architectures whose layers keep something else than keys and values (state-space layers, say)
    get transformers' own cache, which cannot be joined.

    Args:
        config: the model's configuration.
        columns: how many tokens a row can hold.
    """

    def __init__(self, config: Any, columns: int) -> None:
        self._config = config
        stock = DynamicCache(config=config)
        is_plain = bool(stock.layers) and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in stock.layers
        )
        # A mixture that routes samples keeps each row with its expert's.
        self.can_join = is_plain and not getattr(config, "routes_samples", False)
        self.inner: Any = (
            Cache(layers=[_Layer(columns) for _ in stock.layers]) if is_plain else stock
        )

    def like(self, columns: int) -> "KeyValueCache":
        """An empty cache for the same model."""
        return KeyValueCache(self._config, columns)

    def within(self, part: slice, *, rows: int, width: int, columns: int) -> "KeyValueCache":
        """An empty cache for the rows `part` of `rows`, in this one's memory.

        It can hold so many `columns`, the last of which is this one's column number `width`.
        """
        cache = self.like(columns)
        for mine, theirs in zip(self.inner.layers, cache.inner.layers, strict=True):
            theirs.borrow(mine, part, rows, width)
        return cache

    def join(
        self, other: "KeyValueCache", part: slice, *, rows: int, width: int, shared: int = 0
    ) -> None:
        """Take in another cache as the rows `part` of `rows`.

        Its columns end at `width`, but for the first `shared`, which stay where they are.
        """
        for mine, theirs in zip(self.inner.layers, other.inner.layers, strict=True):
            mine.place(theirs, part, rows, width, shared)

    def rewind(self, length: int) -> None:
        """Forget all columns but the first `length`, which are kept as they are."""
        for layer in self.inner.layers:
            layer.rewind(length)

    def select(self, rows: Tensor) -> None:
        """Keep these rows alone, in this order; one from `closed_up` costs least."""
        to = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        moves = (to, rows[to])
        in_place = bool((moves[1] >= len(rows)).all())
        for layer in self.inner.layers:
            if not isinstance(layer, _Layer):
                layer.reorder_cache(rows)
            elif in_place:
                layer.close_up(*moves, rows=len(rows))
            else:
                layer.select(rows)


class Prefix:
    """Keys and values of tokens that many rows begin with, computed once."""

    def __init__(self, cache: KeyValueCache, length: int) -> None:
        self._cache, self._length = cache, length

    def begin(self, columns: int, rows: int) -> KeyValueCache:
        """A cache of so many rows, each of which begins with these tokens."""
        cache = self._cache.like(columns)
        for layer, mine in zip(cache.inner.layers, self._cache.inner.layers, strict=True):
            layer.begin(mine, rows)
        return cache

    def cache(self) -> Any:
        """transformers' view of it, for one row that goes on from there; valid until the next."""
        self._cache.rewind(self._length)
        return self._cache.inner


def read_prefix(module: Any, tokens: Sequence[int], *, room: int = 0) -> Prefix:
    """Run the module on tokens that up to `room` others are to follow.

    Raises:
        ValueError: the model keeps something else than keys and values.
    """
    known = inspect.signature(module.forward).parameters
    if "past_key_values" not in known:
        raise ValueError("the model takes no cache")
    cache = KeyValueCache(module.config, len(tokens) + room)
    if not cache.can_join:
        raise ValueError("the model keeps something else than keys and values")
    inputs = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    ids = torch.tensor([list(tokens)], device=input_device(module))
    module(ids, past_key_values=cache.inner, use_cache=True, **inputs)
    return Prefix(cache, len(tokens))


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, columns, width], of which the first `length` columns hold."""

    keys: Tensor
    values: Tensor
    is_initialized: bool

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._columns = columns
        self._length = 0
        self._lent: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        start, self._length = self._length, self._length + key_states.shape[-2]
        if not self.is_initialized:
            self._make_room(key_states, value_states, key_states.shape[0])
        self.keys[:, :, start : self._length] = key_states
        self.values[:, :, start : self._length] = value_states
        return self.keys[:, :, : self._length], self.values[:, :, : self._length]

    def get_seq_length(self) -> int:
        return self._length

    def rewind(self, length: int) -> None:
        self._length = min(self._length, length)

    def borrow(self, other: "_Layer", part: slice, rows: int, width: int) -> None:
        """Take room in another layer, as soon as it is known what it holds."""

        def lend(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            if not other.is_initialized:
                other._make_room(keys, values, rows)
            other._length = width
            first = width - self._columns
            # Masked columns weigh nothing, but NaN from fresh memory would pass even so.
            other.keys[part, :, :first] = 0
            other.values[part, :, :first] = 0
            return other.keys[part, :, first:width], other.values[part, :, first:width]

        self._lent = lend

    def begin(self, other: "_Layer", rows: int) -> None:
        """Let each of so many rows begin with the one row of another."""
        if other.is_initialized:
            self._make_room(other.keys, other.values, rows)
            self._length = other.get_seq_length()
            self.keys[:, :, : self._length] = other.keys[:, :, : self._length]
            self.values[:, :, : self._length] = other.values[:, :, : self._length]

    def place(self, other: "_Layer", part: slice, rows: int, width: int, shared: int) -> None:
        if not other.is_initialized:  # a layer that uses another one's keys and values
            return
        if not self.is_initialized:
            self._make_room(other.keys, other.values, rows)
        theirs = slice(shared, other.get_seq_length())
        columns = slice(width - (theirs.stop - shared), width)
        for mine, its in ((self.keys, other.keys), (self.values, other.values)):
            mine[part, :, :shared] = its[:, :, :shared]
            # Masked columns weigh nothing, but NaN from fresh memory would pass even so.
            mine[part, :, shared : columns.start] = 0
            mine[part, :, columns] = its[:, :, theirs]
        self._length = width

    def select(self, rows: Tensor) -> None:
        if not self.is_initialized:
            return
        before, own = (self.keys, self.values), rows.to(self.keys.device)
        self._make_room(*before, len(rows))
        for old, new in zip(before, (self.keys, self.values), strict=True):
            # Three times as fast as indexing, and columns without content are not copied.
            torch.index_select(old[:, :, : self._length], 0, own, out=new[:, :, : self._length])

    def close_up(self, to: Tensor, sources: Tensor, *, rows: int) -> None:
        """Copy a few rows over those that are dropped, and keep the first so many."""
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            every = getattr(self, name)
            written = every[:, :, : self._length]
            device = every.device
            written.index_copy_(0, to.to(device), written.index_select(0, sources.to(device)))
            setattr(self, name, every[:rows])

    def _make_room(self, keys: Tensor, values: Tensor, rows: int) -> None:
        if self._lent is not None:
            self.keys, self.values = self._lent(keys, values)
        else:
            self.keys = keys.new_empty(rows, keys.shape[1], self._columns, keys.shape[3])
            self.values = values.new_empty(rows, *self.keys.shape[1:3], values.shape[3])
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True


def closed_up(kept: Sequence[int]) -> list[int]:
    """Rows to keep, in an order in which the last take the places of those that are dropped.

    >>> closed_up([0, 2, 3, 5, 6])
    [0, 5, 2, 3, 6]
    """
    staying = {row for row in kept if row < len(kept)}
    moving = iter(row for row in kept if row >= len(kept))
    return [row if row in staying else next(moving) for row in range(len(kept))]


def window(config: Any) -> int:
    """A model's sliding window, 0 if there is none."""
    if getattr(config, "use_sliding_window", True) is False:
        return 0
    return int(getattr(config, "sliding_window", None) or 0)


def bounds(config: Any) -> tuple[int, ...]:
    """Lengths beyond which a model may attend, or count positions, in another way."""
    found = [
        window(config),
        *(getattr(config, name, None) for name in _WINDOWS),
        *(one.get("original_max_position_embeddings") for one in _scalings(config)),
    ]
    return tuple(bound for bound in found if isinstance(bound, int) and bound)


def turns(config: Any) -> tuple[int, ...]:
    """Lengths beyond which the longest row of a batch changes what all of its rows mean.

    LongRoPE (Ding et al., 2024, arXiv:2402.13753) has rotary factors for short and for long texts,
    and transformers takes one of them for a whole batch, by its last position.
    """
    found = {
        one.get("original_max_position_embeddings")
        for one in _scalings(config)
        if one.get("rope_type") == "longrope"
    }
    return tuple(sorted(int(bound) for bound in found if bound))


def turned(config: Any, length: int) -> tuple[bool, ...]:
    """Which of `turns` a row of that many tokens exceeds."""
    return beyond(turns(config), length)


def beyond(lengths: Sequence[int], length: int) -> tuple[bool, ...]:
    """Which of these lengths another exceeds."""
    return tuple(length > bound for bound in lengths)


def _scalings(config: Any) -> list[dict[str, Any]]:
    """How positions are stretched: the model's way, or that of each kind of layer."""
    scaling = getattr(config, "rope_parameters", None) or {}
    return [one for one in (scaling, *scaling.values()) if isinstance(one, dict)]
