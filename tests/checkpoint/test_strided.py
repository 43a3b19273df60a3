"""Ranges of tensors that are not stored row after row, against numpy's own views."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from modelglue.checkpoint import strided
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.strided import read_strided


class Storage:
    """Bytes that count how many of them were read."""

    def __init__(self, elements: int) -> None:
        self.array = np.arange(elements, dtype=np.float32)
        self.read_bytes = self.calls = 0

    def read(self, buffer: memoryview, at: int) -> None:
        self.read_bytes += len(buffer)
        self.calls += 1
        buffer[:] = self.array.view(np.uint8).data[at : at + len(buffer)]


@given(st.data())
def test_any_range_of_any_view_is_what_numpy_sees(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    strides = tuple(data.draw(st.integers(0, 40)) for _ in shape)
    reach = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    storage = Storage(reach)
    view = as_strided(storage.array, shape, [4 * step for step in strides]).reshape(-1)
    start = data.draw(st.integers(0, len(view)))
    stop = data.draw(st.integers(start, len(view)))
    out = np.full(stop - start, -1, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided, "_AT_ONCE", data.draw(st.sampled_from([4, 64, 1 << 14])))
        read_strided(storage.read, out, start, shape, strides)
    np.testing.assert_array_equal(out, view[start:stop])


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        pytest.param((2000, 1000), (1, 2000), id="transposed"),
        pytest.param((1000, 2000), (4000, 1), id="cut columns"),
        pytest.param((1, 2_000_000), (1, 2), id="one row"),
        pytest.param((1000, 100, 20), (1, 1000, 100_000), id="permuted"),
    ],
)
def test_reading_chunk_by_chunk_reads_each_byte_a_few_times_at_most(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    reach = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    storage = Storage(reach)
    view = as_strided(storage.array, shape, [4 * step for step in strides]).reshape(-1)
    for start in range(0, len(view), 100_000):
        out = np.empty(min(100_000, len(view) - start), np.float32)
        read_strided(storage.read, out, start, shape, strides)
        np.testing.assert_array_equal(out, view[start : start + len(out)])
    assert storage.read_bytes <= 5 * 4 * len(view)
    assert storage.calls <= len(view) / 20


def test_a_transposed_weight_of_a_bin_file_is_read_in_any_chunks(tmp_path: Path) -> None:
    weight = torch.randn(70, 300, generator=torch.Generator().manual_seed(0)).bfloat16().T
    torch.save({"w": weight}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    whole = weight.contiguous().view(torch.uint8).numpy().tobytes()
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.tensors["w"].strides == (1, 300)
        for size in (1, 333, 1000, 1 << 20):
            assert b"".join(map(bytes, checkpoint.chunks("w", size=size))) == whole
