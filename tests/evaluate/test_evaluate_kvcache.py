"""A cache that loses rows holds what indexing would have left, in any order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from modelglue.evaluate.kvcache import KeyValueCache, closed_up

ROWS, COLUMNS = 7, 5


def filled() -> KeyValueCache:
    cache = KeyValueCache(LlamaConfig(num_hidden_layers=2), COLUMNS + 2)
    for layer in range(2):
        shape = (ROWS, 2, COLUMNS, 3)
        drawn = torch.Generator().manual_seed(layer)
        keys, values = (torch.randn(shape, generator=drawn) for _ in range(2))
        cache.inner.update(keys, values, layer)
    return cache


@given(st.sets(st.integers(0, ROWS - 1), min_size=1).map(sorted))
def test_an_order_that_closes_up_keeps_each_row_once_and_most_in_place(kept: list[int]) -> None:
    order = closed_up(kept)
    assert sorted(order) == kept
    assert all(row == place or row >= len(kept) for place, row in enumerate(order))


@given(st.permutations(range(ROWS)), st.integers(1, ROWS), st.booleans())
def test_rows_and_what_is_added_to_them_are_those_of_indexing(
    rows: list[int], count: int, closing: bool
) -> None:
    order = closed_up(sorted(rows[:count])) if closing else rows[:count]
    cache, before = filled(), filled()
    cache.select(torch.tensor(order))
    token = torch.full((count, 2, 1, 3), 9.0)
    for layer, old in enumerate(before.inner.layers):
        keys, values = cache.inner.update(token, token, layer)
        for now, then in ((keys, old.keys), (values, old.values)):
            assert torch.equal(now[:, :, :COLUMNS], then[order][:, :, :COLUMNS])
            assert torch.equal(now[:, :, COLUMNS:], token)


def test_rows_may_be_lost_again() -> None:
    cache = filled()
    kept = torch.arange(ROWS)
    for lost in (2, 0, 3):
        order = torch.tensor(closed_up([row for row in range(len(kept)) if row != lost]))
        cache.select(order)
        kept = kept[order]
    wanted = filled().inner.layers[0].keys[kept]
    found = cache.inner.layers[0].keys
    assert torch.equal(found[:, :, :COLUMNS], wanted[:, :, :COLUMNS])
    with pytest.raises(IndexError):
        cache.select(torch.tensor([0, 9]))
