"""Every merge method, found by discovery, is held to its laws, and to failing the others.

A law that a method does not claim must fail for some of the inputs tried: a claim that is
missing is as wrong as one that is false.
"""

from dataclasses import replace

import numpy as np
import pytest
from law_samples import ALL, SIZES, Sample, samples, uneven

from modelglue.merge.method import Law, Method


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=1e-4, atol=1e-5)


def idempotent(method: Method, sample: Sample) -> bool:
    copies = np.stack([sample.tensors[0]] * len(sample.tensors))
    return close(sample.but(copies, sample.base).merge(method), copies[0])


def anchored(method: Method, sample: Sample) -> bool:
    base = sample.tensors[0] if sample.base is None else sample.base
    copies = np.stack([base] * len(sample.tensors))
    return close(sample.but(copies, sample.base).merge(method), base)


def permutation_invariant(method: Method, sample: Sample) -> bool:
    values = uneven(method, len(sample.tensors))
    turned = {k: v[::-1] if isinstance(v, list) else v for k, v in values.items()}
    backwards = Sample(
        sample.tensors[::-1],
        sample.base,
        None if sample.statistics is None else sample.statistics[::-1],
    )
    return close(sample.merge(method, **values), backwards.merge(method, **turned))


def homogeneous(method: Method, sample: Sample) -> bool:
    values = uneven(method, len(sample.tensors))
    scaled = sample.but(4 * sample.tensors, None if sample.base is None else 4 * sample.base)
    return close(4 * sample.merge(method, **values), scaled.merge(method, **values))


def translation_equivariant(method: Method, sample: Sample) -> bool:
    shift = samples(method, 99, sample.tensors.shape[1:])[0].tensors[0]
    base = None if sample.base is None else sample.base + shift
    return close(
        sample.merge(method) + shift, sample.but(sample.tensors + shift, base).merge(method)
    )


def elementwise(method: Method, sample: Sample) -> bool:
    values = uneven(method, len(sample.tensors))
    strange = samples(method, 98, sample.tensors.shape[1:])[0]
    same = np.arange(sample.tensors[0].size).reshape(sample.tensors.shape[1:]) % 3 == 0
    base = None if sample.base is None else np.where(same, sample.base, strange.base)
    mixed = sample.but(np.where(same, sample.tensors, strange.tensors), base)
    if method.statistics == "same":
        mixed = replace(mixed, statistics=np.where(same, sample.statistics, strange.statistics))
    return close(sample.merge(method, **values)[same], mixed.merge(method, **values)[same])


CHECKS = {
    Law.IDEMPOTENT: idempotent,
    Law.ANCHORED: anchored,
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
        CHECKS[law](method, sample)
        for seed, shape in enumerate(SIZES)
        for sample in samples(method, seed, shape)
    ]
    assert all(outcomes) if law in method.laws else not all(outcomes)
