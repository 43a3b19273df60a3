"""A key-value cache that is written in place and can lose rows.

transformers' own dynamic cache copies everything at every token; for small models that is most of
a decoding step. Here each layer has its room from the start, and a step writes one column.
Sliding layers keep all columns: the mask says what they see.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


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
        self.can_join = bool(stock.layers) and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in stock.layers
        )
        self.inner: Any = (
            Cache(layers=[_Layer(columns) for _ in stock.layers]) if self.can_join else stock
        )

    def like(self, columns: int) -> "KeyValueCache":
        """An empty cache for the same model."""
        return KeyValueCache(self._config, columns)

    def join(self, other: "KeyValueCache", part: slice, *, rows: int, width: int) -> None:
        """Take in another cache as the rows `part` of `rows`, its columns ending at `width`."""
        for mine, theirs in zip(self.inner.layers, other.inner.layers, strict=True):
            mine.place(theirs, part, rows, width)

    def select(self, rows: Tensor) -> None:
        """Keep these rows alone."""
        for layer in self.inner.layers:
            if isinstance(layer, _Layer):
                layer.select(rows)
            else:
                layer.reorder_cache(rows)


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, columns, width], of which the first `length` columns hold."""

    keys: Tensor
    values: Tensor
    is_initialized: bool

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._columns = columns
        self._length = 0

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

    def place(self, other: "_Layer", part: slice, rows: int, width: int) -> None:
        if not other.is_initialized:  # a layer that uses another one's keys and values
            return
        if not self.is_initialized:
            self._make_room(other.keys, other.values, rows)
        columns = slice(width - other.get_seq_length(), width)
        # Masked columns weigh nothing, but NaN from fresh memory would pass through that weight.
        self.keys[part, :, : columns.start] = 0
        self.values[part, :, : columns.start] = 0
        self.keys[part, :, columns] = other.keys[:, :, : other.get_seq_length()]
        self.values[part, :, columns] = other.values[:, :, : other.get_seq_length()]
        self._length = width

    def select(self, rows: Tensor) -> None:
        if self.is_initialized:
            self.keys = self.keys[rows]
            self.values = self.values[rows]

    def _make_room(self, keys: Tensor, values: Tensor, rows: int) -> None:
        self.keys = keys.new_empty(rows, keys.shape[1], self._columns, keys.shape[3])
        self.values = values.new_empty(rows, *self.keys.shape[1:3], values.shape[3])
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
