"""Families: complete linkage, the same for any order, with a reason for every pair apart."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import InputError
from modelglue.zoo.cluster import Clustering, cluster, families
from modelglue.zoo.similarity import Similarity


def similarity(names: str, **pairs: float) -> Similarity:
    """One-letter models; pairs that are not given cannot be compared."""
    matrix = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(matrix, 1)
    for (a, b), value in pairs.items():
        i, j = names.index(a), names.index(b)
        matrix[i, j] = matrix[j, i] = value
    return Similarity(tuple(names), matrix, {}, {})


def test_alike_models_are_a_family() -> None:
    found = families(similarity("abcd", ab=0.97, cd=0.98, ac=0.5, ad=0.5, bc=0.5, bd=0.5), {})
    assert found.families == (("a", "b"), ("c", "d"))
    assert found.family_of("d") == 1


def test_the_largest_family_is_first() -> None:
    pairs = {a + b: 0.99 for a, b in itertools.combinations("wxyz", 2)}
    found = families(similarity("abwxyz", ab=0.99, **pairs), {})
    assert found.families == (("w", "x", "y", "z"), ("a", "b"))


def test_exactly_the_threshold_is_enough() -> None:
    assert families(similarity("ab", ab=0.95), {}).families == (("a", "b"),)


def test_the_threshold_can_be_chosen() -> None:
    assert families(similarity("ab", ab=0.8), {}, threshold=0.7).families == (("a", "b"),)


def test_a_threshold_that_is_no_cosine_is_refused() -> None:
    with pytest.raises(InputError, match=r"threshold 95"):
        families(similarity("ab", ab=0.8), {}, threshold=95)


def test_a_reason_says_how_far_apart_two_models_are() -> None:
    found = families(similarity("ab", ab=0.88), {})
    assert found.reason("b", "a") == "similarity 0.88 < 0.95"
    assert found.reasons == {("a", "b"): "similarity 0.88 < 0.95"}


def test_a_reason_has_the_digits_that_tell_similarity_and_threshold_apart() -> None:
    assert (
        families(similarity("ab", ab=0.94996), {}).reason("a", "b") == "similarity 0.94996 < 0.95"
    )


def test_models_that_cannot_be_merged_are_apart_however_alike() -> None:
    found = families(similarity("ab", ab=1.0), {("b", "a"): "vocabulary: 3 tokens differ"})
    assert found.families == (("a",), ("b",))
    assert found.reason("a", "b") == "vocabulary: 3 tokens differ"


def test_a_pair_without_a_similarity_says_so() -> None:
    assert "in common" in str(families(similarity("ab"), {}).reason("a", "b"))


def test_a_model_between_two_joins_the_nearer_and_the_other_is_told_why() -> None:
    found = families(similarity("abc", ab=0.97, bc=0.96, ac=0.90), {})
    assert found.families == (("a", "b"), ("c",))
    assert found.reason("a", "c") == "similarity 0.90 < 0.95"
    assert found.reason("b", "c") == (
        "similarity 0.96 is enough, but a and c, which would be in the same family, are apart: "
        "similarity 0.90 < 0.95"
    )


def test_ties_go_by_name() -> None:
    found = families(similarity("cba", ab=0.97, bc=0.97, ac=0.90), {})
    assert found.families == (("a", "b"), ("c",))


NAMES = "abcdefg"


@given(
    st.lists(st.sampled_from([0.8, 0.94, 0.95, 0.96, 0.97, 1.0, np.nan]), min_size=21, max_size=21),
    st.sets(st.sampled_from(list(itertools.combinations(NAMES, 2))), max_size=4),
    st.permutations(NAMES),
)
def test_the_order_changes_nothing_and_every_pair_passes(
    values: list[float], refused: set[tuple[str, str]], order: list[str]
) -> None:
    pairs = {a + b: v for (a, b), v in zip(itertools.combinations(NAMES, 2), values, strict=True)}
    reasons = dict.fromkeys(refused, "architecture: x vs y")
    found = families(similarity(NAMES, **pairs), reasons)
    other = families(
        similarity("".join(order), **pairs), {(b, a): why for (a, b), why in reasons.items()}
    )
    assert other.families == found.families
    assert other.reasons == found.reasons
    assert sorted(itertools.chain(*found.families)) == list(NAMES)
    for a, b in itertools.combinations(NAMES, 2):
        together = found.family_of(a) == found.family_of(b)
        assert together == ((a, b) not in found.reasons)
        if together:
            assert pairs[a + b] >= 0.95
            assert (a, b) not in refused


def test_a_zoo_falls_into_its_families(llamas: list[Path], tmp_path: Path) -> None:
    drifted = tiny.save_variant(llamas[0], tmp_path / "drifted", seed=9, scale=0.02)
    foreign = tiny.save_model(tmp_path / "foreign", seed=5, model_type="qwen2")
    wide = tiny.save_model(tmp_path / "wide", seed=6, intermediate_size=96)
    models = [Checkpoint.open(path) for path in (foreign, *llamas, wide, drifted)]
    found = cluster(models)
    assert found.families == (("base", "ft0", "ft1", "ft2"), ("drifted",), ("foreign",), ("wide",))
    assert found.reason("base", "foreign") == "architecture: llama vs qwen2"
    assert str(found.reason("ft1", "drifted")).startswith("similarity 0.")
    assert "down_proj" in str(found.reason("wide", "base"))
    assert len(found.reasons) == 21 - 6
    assert cluster(models[::-1]).reasons == found.reasons


def test_task_vectors_can_be_clustered(llamas: list[Path]) -> None:
    models = [Checkpoint.open(path) for path in llamas]
    found = cluster(models[1:], base=models[0], of="task_vectors")
    assert [len(family) for family in found.families] == [1, 1, 1]
    assert found.similarity.of == "task_vectors"


def test_a_family_that_nobody_is_in_is_an_error() -> None:
    with pytest.raises(InputError, match="no model is called 'z'"):
        families(similarity("ab", ab=1), {}).family_of("z")


def test_json_round_trips(llamas: list[Path]) -> None:
    models = [Checkpoint.open(path) for path in llamas]
    found = cluster(models, threshold=0.999)
    text = json.dumps(found.to_json(), allow_nan=False)
    again = Clustering.from_json(json.loads(text))
    assert again.to_json() == found.to_json()
    assert again.families == found.families
    assert again.reasons == found.reasons


@pytest.mark.parametrize("count", [0, 1])
def test_few_models_are_families_too(llamas: list[Path], count: int) -> None:
    found = cluster([Checkpoint.open(path) for path in llamas[:count]])
    assert found.families == (("base",),) * count
