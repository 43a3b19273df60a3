"""What every merge method owes whoever runs it, laws or no laws."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from law_samples import ALL, SIZES, Sample, run, samples, uneven, variants

from modelglue.merge.chunk import Chunk
from modelglue.merge.kernels import uniform
from modelglue.merge.memory import InMemory, as_array, resolve
from modelglue.merge.method import METHODS, Method


def names(method: Method) -> set[str]:
    return {parameter.name for parameter in method.parameters}


every_method = pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)


class Threaded(InMemory):
    """A whole whose chunks are worked on by several threads."""

    def map(self, function: Any) -> list[Any]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(function, map(self.chunk, range(len(self.ranges)))))


def dropped(merged: np.ndarray, sample: Sample) -> np.ndarray:
    """Which entries are the base's."""
    return merged.reshape(-1) == (np.nan if sample.base is None else sample.base.reshape(-1))


def agree(a: np.ndarray, b: np.ndarray, sample: Sample) -> bool:
    """Up to the last bits, and in what was dropped to the bit."""
    near = np.allclose(a.reshape(-1), b.reshape(-1), rtol=1e-6, atol=1e-6)
    return near and np.array_equal(dropped(a, sample), dropped(b, sample))


@every_method
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_shape_and_dtype_are_kept_and_inputs_left_alone(
    method: Method, shape: tuple[int, ...]
) -> None:
    for sample in samples(method, 1, shape):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            tensors = torch.from_numpy(sample.tensors).to(dtype)
            base = None if sample.base is None else torch.from_numpy(sample.base).to(dtype)
            before = tensors.clone(), None if base is None else base.clone()
            for values in variants(method, len(tensors)):
                merged = method(tensors, base, statistics=sample.statistics, **values)
                assert merged.shape == shape
                assert merged.dtype == dtype
                assert torch.isfinite(merged).all()
            assert torch.equal(tensors, before[0])
            assert base is None or torch.equal(base, before[1])


@every_method
def test_the_result_does_not_depend_on_chunks(method: Method) -> None:
    for sample in samples(method, 3, (40, 25)):
        for values in variants(method, len(sample.tensors)):
            whole = sample.merge(method, **values)
            for size in (25, 60, 999):
                cut = sample.merge(method, chunk=size, **values)
                assert agree(cut, whole, sample)
                assert method.measure or np.array_equal(cut, whole)


@every_method
def test_rows_longer_than_a_chunk_change_nothing(method: Method) -> None:
    for sample in samples(method, 4, (3, 40)):
        for values in variants(method, len(sample.tensors)):
            cut = sample.merge(method, chunk=7, **values)
            assert agree(cut, sample.merge(method, **values), sample)


@every_method
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_what_has_no_entries_stays_empty(
    method: Method, shape: tuple[int, ...], library: str
) -> None:
    convert = np.asarray if library == "numpy" else torch.from_numpy
    for sample in samples(method, 11, shape):
        base = None if sample.base is None else convert(sample.base)
        for values in variants(method, len(sample.tensors)):
            merged = method(convert(sample.tensors), base, statistics=sample.statistics, **values)
            assert tuple(merged.shape) == shape
            assert type(merged) is type(convert(sample.tensors))


@pytest.mark.parametrize(
    "method", [m for m in ALL if m.parameter("seed")], ids=lambda method: method.name
)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_where_the_index_outgrows_32_bits_the_grid_of_chunks_changes_nothing(
    method: Method, library: str
) -> None:
    convert = np.asarray if library == "numpy" else torch.from_numpy
    sample = samples(method, 12, (4, 10))[0]
    assert sample.base is not None
    values = resolve(method, uneven(method, len(sample.tensors)), len(sample.tensors))
    flat = convert(sample.tensors.reshape(-1, 40)), convert(sample.base.reshape(-1))
    whole = Chunk(*flat, start=2**32 - 25, width=10, key=5)
    rows = [method.merge(part, None, values) for part in whole.parts(10)]
    assert np.array_equal(np.concatenate(rows), np.asarray(method.merge(whole, None, values)))
    # What the chunk after the border draws is what a chunk that begins there does.
    after = uniform(whole.part(25, 40), 0)
    assert np.array_equal(np.asarray(uniform(whole, 0))[25:], np.asarray(after))


@every_method
def test_threads_change_no_bit(method: Method) -> None:
    for sample in samples(method, 5, (64, 32)):
        for values in variants(method, len(sample.tensors)):
            one, many = (
                run(method, sample.whole(kind, np.asarray, values, 128), values)
                for kind in (InMemory, Threaded)
            )
            assert np.array_equal(one, many)


@every_method
def test_numpy_and_torch_agree(method: Method) -> None:
    for sample in samples(method, 6, (64, 33)):
        for values in variants(method, len(sample.tensors)):
            numpy, on_torch = (
                run(method, sample.whole(InMemory, convert, values, 330), values)
                for convert in (np.asarray, torch.from_numpy)
            )
            assert agree(on_torch, numpy, sample)


@every_method
def test_bits_of_bfloat16_are_read_as_the_numbers_that_they_are(method: Method) -> None:
    def rounded(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).bfloat16()

    for sample in samples(method, 7, (16, 12)):
        values = uneven(method, len(sample.tensors))
        bits, numbers = (
            run(method, sample.whole(InMemory, convert, values, 48), values)
            for convert in (lambda a: as_array(rounded(a)), lambda a: rounded(a).float().numpy())
        )
        assert agree(bits, numbers, sample)


@every_method
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_going_in_is_not_finite_coming_out(
    method: Method, poison: float, library: str
) -> None:
    for sample in samples(method, 8, (6, 5)):
        n = len(sample.tensors)
        for place in range(n + (sample.base is not None)):
            tensors = sample.tensors.copy()
            base = None if sample.base is None else sample.base.copy()
            (base if place == n else tensors[place])[2, 3] = poison  # type: ignore[index]
            convert = np.asarray if library == "numpy" else torch.from_numpy
            for values in variants(method, n):
                whole = sample.but(tensors, base).whole(InMemory, convert, values, 10)
                merged = run(method, whole, values).reshape(6, 5)
                assert not np.isfinite(merged[2, 3])


@every_method
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(1,), (64, 1), (64, 512)], ids=str)
def test_inputs_on_one_line_give_nothing_larger_than_they_are(
    method: Method, shape: tuple[int, ...], library: str
) -> None:
    """Opposite directions: what divides by a sine, a sum of signs or a length must know 0."""
    for sample in samples(method, 10, shape):
        lengths = [1.0, -1.37, 0.37][: len(sample.tensors)]
        exact = np.stack([np.float32(r) * sample.tensors[0] for r in lengths])
        rounded = torch.from_numpy(exact).bfloat16().float().numpy()
        base = None if sample.base is None else 0 * sample.base
        convert = np.asarray if library == "numpy" else torch.from_numpy
        for opposite, values in product([exact, rounded], variants(method, len(exact))):
            whole = sample.but(opposite, base).whole(InMemory, convert, values, 1 << 19)
            merged = run(method, whole, values)
            assert abs(merged).max() < 10 * abs(opposite).max()


CANCELLING = {"weight": [0.7, -0.4, -0.3, 1.0], "normalize": True}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    "method",
    [m for m in ALL if m.base == "required" and {"weight", "normalize"} <= names(m)],
    ids=lambda method: method.name,
)
def test_weights_that_cancel_among_those_that_agree_divide_by_nothing(
    method: Method, library: str
) -> None:
    signs = np.array([[1], [-1], [-1], [-1]], np.float32) * np.ones(5, np.float32)
    convert = np.asarray if library == "numpy" else torch.from_numpy
    whole = InMemory(convert(signs), convert(np.zeros(5, np.float32)), (5,))
    assert abs(run(method, whole, CANCELLING)).max() < 4


@pytest.mark.parametrize("shape", [(512, 2048), (1 << 17, 8)], ids=str)
@pytest.mark.parametrize(
    "method", [m for m in ALL if m.statistics != "gram"], ids=lambda method: method.name
)
def test_a_first_pass_and_a_chunk_hold_little(method: Method, shape: tuple[int, int]) -> None:
    """Less than one tensor: not a sum a row and chunk, nor one a column and chunk."""
    for sample in samples(method, 13, shape):
        for values in variants(method, len(sample.tensors)):
            resolved = resolve(method, values, len(sample.tensors))
            whole = sample.whole(InMemory, np.asarray, values, 4096)
            method.merge(whole.chunk(0), method.first_pass(whole, resolved), resolved)
            tracemalloc.start()
            measured = method.first_pass(whole, resolved)
            method.merge(whole.chunk(0), measured, resolved)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 4 << 20, values


@pytest.mark.parametrize(
    "method", [m for m in ALL if m.parameter("seed")], ids=lambda method: method.name
)
def test_a_seed_draws_the_same_again_and_another_draws_others(method: Method) -> None:
    sample = samples(method, 9, (30, 20))[0]
    values = uneven(method, len(sample.tensors))
    first, again, other = (sample.merge(method, **(values | {"seed": s})) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(TypeError, match="desnity"):
        METHODS["linear"](np.ones((2, 3), np.float32), desnity=0.5)
