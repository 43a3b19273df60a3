"""The recipe's `mixture` section: short names, words, and what cannot exist."""

from typing import Any

import pytest

from modelglue.mixture.mix import NEIGHBOURS
from modelglue.mixture.notation import MixtureKind, impossible
from modelglue.mixture.router_prompts import INITIALISATIONS
from modelglue.recipe.family import looks_of
from modelglue.recipe.mixture_config import OWN, FinalMixture, parse_mixture


def parsed(value: object) -> FinalMixture:
    problems: list[str] = []
    found = parse_mixture(value, problems)
    assert problems == []
    return found


def problems_of(value: object) -> list[str]:
    problems: list[str] = []
    parse_mixture(value, problems)
    return problems


def test_nothing_said_is_the_papers_model_level_router() -> None:
    assert parsed(None) == FinalMixture(MixtureKind("model", "linear", "sample"))


def test_none_is_no_mixture() -> None:
    assert parsed("none").kind is None


@pytest.mark.parametrize("level", "FBM")
@pytest.mark.parametrize("router", "LM")
@pytest.mark.parametrize("seen", "ST")
def test_short_names_and_words_are_the_same(level: str, router: str, seen: str) -> None:
    short = f"{level}-{router}-{seen}"
    words = {
        "level": {"F": "ffn", "B": "block", "M": "model"}[level],
        "router": {"L": "linear", "M": "mlp"}[router],
        "input": {"S": "sample", "T": "token"}[seen],
    }
    if level != "F" and seen == "T":
        for value in (short, words):
            (problem,) = problems_of(value)
            assert f"use {level}-{router}-S" in problem
    else:
        found = parsed(short)
        assert found == parsed(words) == parsed(short.lower())
        assert found.kind is not None
        assert found.kind.short == short


@pytest.mark.parametrize(
    "value",
    [
        "none",
        "F-L-T",
        {"level": "block", "router": "mlp", "shared_layers": 4, "experts": "models"},
        {"level": "ffn", "top_k": 2, "initialisation": "random"},
        {"initialisation": "knn"},
    ],
)
def test_what_was_said_reads_back_as_it_was(value: object) -> None:
    assert parsed(parsed(value).to_mapping()) == parsed(value)


def test_the_ffn_level_routes_tokens_unless_it_is_told_otherwise() -> None:
    kind = parsed({"level": "ffn"}).kind
    assert kind is not None
    assert kind.input == "token"


def test_all_problems_are_told_at_once_with_the_nearest_spelling() -> None:
    found = problems_of({"level": "fnn", "routr": "mlp", "top_k": 0, "experts": "model"})
    assert len(found) == 4
    assert any("mixture.level: 'fnn'" in p and "ffn" in p for p in found)
    assert any("mixture.routr: unknown key" in p and "router" in p for p in found)
    assert any("mixture.top_k" in p for p in found)
    assert any("mixture.experts" in p and "models" in p for p in found)


def test_several_experts_at_block_level_are_refused_with_what_can_be() -> None:
    (problem,) = problems_of({"level": "block", "top_k": 2})
    assert "top_k: 1" in problem


def test_more_experts_cannot_answer_than_there_are() -> None:
    assert impossible(MixtureKind(top_k=3), experts=2) is not None
    assert impossible(MixtureKind(top_k=2), experts=2) is None


def test_routers_of_a_recipe_are_initialised_in_every_way_that_prompts_and_scores_allow() -> None:
    assert set(OWN["initialisation"]) == {*INITIALISATIONS, NEIGHBOURS}
    assert parsed({"initialisation": NEIGHBOURS}).by_scores
    assert not parsed(None).by_scores


def test_only_families_that_share_the_tasks_are_put_to_the_test_twice() -> None:
    families = [("a", "b"), ("c",), ("d", "e")]
    assert looks_of(families, parsed(None)) == 4
    assert looks_of(families[:1], parsed(None)) == 1
    for mixture in ("none", {"level": "ffn", "experts": "models"}):
        assert looks_of(families, parsed(mixture)) == 2


def test_experts_that_answer_together_share_no_layers() -> None:
    (problem,) = problems_of({"level": "model", "shared_layers": 1, "top_k": 2})
    assert "use top_k: 1, or shared_layers: 0" in problem


@pytest.mark.parametrize("level", ["block", "model"])
@pytest.mark.parametrize("shared", [0, 2])
def test_what_is_advised_is_possible(level: Any, shared: int) -> None:
    asked = MixtureKind(level, "mlp", "token", 2, shared)
    assert impossible(asked) is not None
    top_k = 1 if level == "block" or shared else 2
    assert f"input: sample, top_k: {top_k}" in str(impossible(asked))
    assert impossible(MixtureKind(level, "mlp", "sample", top_k, shared)) is None
