"""What `modelglue route` tells: where texts go, and why."""

import pytest
import torch
from mixture_samples import PROMPTS, QUESTIONS, RIGHT

import tiny
from modelglue.errors import MixtureError
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.compose import compose
from modelglue.mixture.inspect_routes import inspect_routes
from modelglue.mixture.layer_features import layer_features
from modelglue.mixture.mix import mix
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router_scores import ScoreTable


def test_a_bundle_tells_probabilities_and_the_nearest_prompts(bundle_path):
    found = inspect_routes(bundle_path, QUESTIONS)
    names = list(PROMPTS)
    assert [one.expert for one in found] == [names[i] for i in RIGHT]
    for one, route in zip(found, Bundle.load(bundle_path).route(QUESTIONS), strict=True):
        assert list(one.probability.values()) == pytest.approx(list(route.probabilities))
        assert one.share == {name: float(name == one.expert) for name in names}
        assert [near.text in PROMPTS[one.expert] for near in one.nearest] == [True] * 3
        assert sorted((near.similarity for near in one.nearest), reverse=True) == [
            near.similarity for near in one.nearest
        ]
        assert one.layers == one.tokens == ()


def test_a_router_by_neighbours_tells_the_scored_items(tmp_path, experts):
    texts = [text for own in PROMPTS.values() for text in own]
    scores = torch.zeros(60, 3)
    for expert in range(3):
        scores[20 * expert : 20 * expert + 20, expert] = 1.0
    mix(experts, {}, tmp_path / "out", initialisation="knn", scores=ScoreTable(texts, scores))
    found = inspect_routes(tmp_path / "out", [texts[3], texts[41]])
    assert [one.nearest[0].text for one in found] == [texts[3], texts[41]]
    assert found[0].nearest[0].experts == {"numbers": 1.0, "words": 0.0, "signs": 0.0}
    assert found[0].nearest[0].similarity == pytest.approx(1)


def test_experts_that_answer_together_have_shares(tmp_path):
    two = {name: tiny.save_model(tmp_path / name, seed=i) for i, name in enumerate(PROMPTS)}
    mix(two, PROMPTS, tmp_path / "out", kind=MixtureKind(top_k=2))
    for one in inspect_routes(tmp_path / "out", QUESTIONS):
        assert sum(one.share.values()) == pytest.approx(1)
        assert sorted(one.share.values())[0] == 0


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    base = tiny.save_model(root / "base", seed=0)
    return {
        name: tiny.save_variant(base, root / name, seed=i, scale=0.02)
        for i, name in enumerate(PROMPTS)
    }


@pytest.mark.parametrize(
    "kind",
    [
        MixtureKind("block", shared_layers=1),
        MixtureKind("ffn", "mlp", "token", 2, 1),
        MixtureKind("ffn", "linear", "token", 2),
        MixtureKind("model", shared_layers=2),
    ],
    ids=lambda kind: f"{kind.short}{kind.top_k}",
)
def test_a_checkpoint_tells_what_every_layers_router_says(tmp_path, family, kind):
    compose(family, PROMPTS, tmp_path / "out", kind=kind)
    found = inspect_routes(tmp_path / "out", [texts[0] for texts in PROMPTS.values()])
    names = list(PROMPTS)
    layers = range(kind.shared_layers, kind.shared_layers + 1 if kind.level == "model" else 4)
    for one, right in zip(found, names, strict=True):
        assert one.expert == right
        assert [layer.layer for layer in one.layers] == list(layers)
        for layer in one.layers:
            assert list(layer.share) == names
            assert sum(layer.share.values()) == pytest.approx(1, abs=1e-5)
            assert sum(layer.probability.values()) == pytest.approx(1, abs=1e-5)
            if kind.input == "sample":
                assert max(layer.share.values()) == 1
        if kind.input == "token":
            assert "".join(word for word, _ in one.tokens) == one.text
    assert found[0].to_json()["layers"][0]["layer"] == kind.shared_layers


def test_routes_in_a_checkpoint_are_those_that_it_takes_in_a_padded_batch(tmp_path, family):
    compose(family, PROMPTS, tmp_path / "out", kind=MixtureKind("block"))
    loaded = HuggingFaceModel.load(tmp_path / "out")
    tokenizer = loaded.tokenizer
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(QUESTIONS, return_tensors="pt", padding=True)
        with torch.no_grad():
            told = loaded.module(**batch, use_cache=False, output_router_logits=True)
        for row, one in enumerate(inspect_routes(tmp_path / "out", QUESTIONS)):
            for logits, layer in zip(told.router_logits, one.layers, strict=True):
                expected = list(layer.probability.values())
                assert logits[row].softmax(dim=-1).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        MixtureKind("block", shared_layers=1),
        MixtureKind("ffn", "mlp", "token", 2),
        MixtureKind("ffn", "linear", "sample"),
        MixtureKind("model", shared_layers=2),
    ],
    ids=lambda kind: kind.short,
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2"])
def test_what_a_router_sees_at_run_time_is_what_it_was_made_of(tmp_path, kind, family):
    sizes = {"head_dim": 8, "sliding_window": 8} if family == "gemma3_text" else {}
    one = tiny.save_model(tmp_path / "one", model_type=family, **sizes)
    prompts = {"a": PROMPTS["numbers"], "b": PROMPTS["words"]}
    compose({"a": one, "b": one}, prompts, tmp_path / "out", kind=kind)
    loaded = HuggingFaceModel.load(tmp_path / "out")
    seen = []
    for name, module in loaded.module.named_modules():
        if name.endswith(".router"):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loaded.tokenizer.padding_side = "left"
    batch = loaded.tokenizer(QUESTIONS, return_tensors="pt", padding=True)
    with torch.no_grad():
        loaded.module(**batch, use_cache=False)
    expected = layer_features(one, kind, QUESTIONS)
    for found, features in zip(seen, expected, strict=True):
        if kind.input == "token":
            found = found[batch.attention_mask.reshape(-1) == 1]
        torch.testing.assert_close(found, features, rtol=1e-3, atol=1e-4)


def test_a_model_without_routers_is_none(family):
    with pytest.raises(MixtureError, match="is no mixture"):
        inspect_routes(family["words"], ["a"])
