"""Every merge method, found by discovery, is held to its laws, and to failing the others.

A law that a method does not claim must fail for some of the inputs tried: a claim that is
missing is as wrong as one that is false.
"""

import pytest
import torch
from torch import Tensor

from modelglue.merge.method import METHODS, Law, Method

ALL = [METHODS[name] for name in METHODS]
SIZES = [(1,), (7,), (5, 3), (2, 3, 4)]


def inputs(seed: int, shape: tuple[int, ...], method: Method) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    least, most = method.models
    n = most or max(least, 3)
    return torch.randn((n, *shape), generator=generator), torch.randn(shape, generator=generator)


def uneven(method: Method, n: int) -> dict[str, list[float]]:
    """Per-model parameters that differ between models."""
    return {
        p.name: [0.2 + 0.6 * i / n for i in range(n)] for p in method.parameters if p.per == "model"
    }


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def idempotent(method: Method, tensors: Tensor, base: Tensor) -> bool:
    copies = tensors[:1].expand_as(tensors)
    return close(method(copies, base, **uneven(method, len(tensors))), tensors[0])


def permutation_invariant(method: Method, tensors: Tensor, base: Tensor) -> bool:
    values = uneven(method, len(tensors))
    turned = {name: value[::-1] for name, value in values.items()}
    return close(method(tensors, base, **values), method(tensors.flip(0), base, **turned))


def homogeneous(method: Method, tensors: Tensor, base: Tensor) -> bool:
    values = uneven(method, len(tensors))
    return close(3 * method(tensors, base, **values), method(3 * tensors, 3 * base, **values))


def translation_equivariant(method: Method, tensors: Tensor, base: Tensor) -> bool:
    values = uneven(method, len(tensors))
    shift = torch.full_like(base, 0.7)
    moved = method(tensors + shift, base + shift, **values)
    return close(method(tensors, base, **values) + shift, moved)


def elementwise(method: Method, tensors: Tensor, base: Tensor) -> bool:
    values = uneven(method, len(tensors))
    flat, flat_base = tensors.reshape(len(tensors), -1), base.reshape(-1)
    parts = [method(flat[:, i], flat_base[i], **values) for i in range(flat.shape[1])]
    return close(torch.stack(parts), method(tensors, base, **values).reshape(-1))


CHECKS = {
    Law.IDEMPOTENT: idempotent,
    Law.PERMUTATION_INVARIANT: permutation_invariant,
    Law.HOMOGENEOUS: homogeneous,
    Law.TRANSLATION_EQUIVARIANT: translation_equivariant,
    Law.ELEMENTWISE: elementwise,
}


def test_every_law_has_a_check() -> None:
    assert set(CHECKS) == set(Law)


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
@pytest.mark.parametrize("law", Law, ids=lambda law: law.name.lower())
def test_a_method_obeys_exactly_the_laws_that_it_claims(method: Method, law: Law) -> None:
    outcomes = [
        CHECKS[law](method, *inputs(seed, shape, method)) for seed, shape in enumerate(SIZES)
    ]
    assert all(outcomes) if law in method.laws else not all(outcomes)


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_are_kept_and_inputs_are_left_alone(
    method: Method, dtype: torch.dtype
) -> None:
    for seed, shape in enumerate(SIZES):
        tensors, base = inputs(seed, shape, method)
        tensors, base = tensors.to(dtype), base.to(dtype)
        before = tensors.clone(), base.clone()
        merged = method(tensors, base)
        assert merged.shape == shape
        assert merged.dtype == dtype
        assert torch.isfinite(merged).all()
        assert torch.equal(tensors, before[0])
        assert torch.equal(base, before[1])


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_the_result_is_the_same_to_the_bit_however_it_is_chunked(method: Method) -> None:
    if Law.ELEMENTWISE not in method.laws:
        pytest.fail(f"{method.name} needs a test of its statistics pass here")
    tensors, base = inputs(3, (1000,), method)
    whole = method(tensors, base, **uneven(method, len(tensors)))
    for size in (1, 7, 64, 999):
        parts = [
            method(tensors[:, i : i + size], base[i : i + size], **uneven(method, len(tensors)))
            for i in range(0, 1000, size)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_linear_agrees_with_a_naive_loop() -> None:
    tensors, _ = inputs(0, (4, 5), METHODS["linear"])
    weights = [0.5, -0.2, 0.9]
    for normalize in (True, False):
        total = sum(weights) if normalize else 1.0
        expected = torch.zeros(4, 5, dtype=torch.float64)
        for weight, tensor in zip(weights, tensors):
            expected += weight / total * tensor.double()
        merged = METHODS["linear"](tensors, weight=weights, normalize=normalize)
        assert torch.allclose(merged.double(), expected, atol=1e-6)


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(TypeError, match="desnity"):
        METHODS["linear"](torch.ones(2, 3), desnity=0.5)
