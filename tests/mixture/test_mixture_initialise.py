"""Routers inside of a model see at first what they will see: naive hooks, one text at a time."""

import pytest
import torch
from mixture_samples import PROMPTS, QUESTIONS
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelglue.errors import MixtureError, UnknownName
from modelglue.mixture.initialise import initialise, initialise_from_scores
from modelglue.mixture.inspect_routes import inspect_routes
from modelglue.mixture.layer_features import LayerReader, feed_forward, layer_features
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter, MLPRouter
from modelglue.mixture.router_scores import ScoreTable
from modelglue.mixture.surgery import write_layers

FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "phi3": {},
    "olmo2": {},
}
KINDS = {
    "block": MixtureKind("block"),
    "ffn sample": MixtureKind("ffn", input="sample"),
    "ffn token": MixtureKind("ffn", input="token"),
    "model": MixtureKind("model", shared_layers=2),
}


OWN = [text for own in PROMPTS.values() for text in own]


def share_of_right(router, features):
    """How many of `OWN` go to the expert whose prompt they are."""
    right = torch.arange(3).repeat_interleave(20)
    return float((router.logits(features).argmax(dim=1) == right).double().mean())


@pytest.fixture(scope="module")
def dense(tmp_path_factory, make_model):
    """A llama whose tokenizer opens every text."""
    path = make_model(tmp_path_factory.mktemp("dense") / "llama", seed=5)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(path)
    return path


def inputs_of(path, text, pick):
    """What modules are given when one text is read alone: `pick(layer)` is the module."""
    model = AutoModelForCausalLM.from_pretrained(path)
    ids = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt").input_ids
    kept = []
    for layer in model.model.layers:
        pick(layer).register_forward_pre_hook(
            lambda _, given, named: kept.append((given or (named["hidden_states"],))[0][0]),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(ids, use_cache=False)
    return kept


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", ["block", "ffn"])
def test_every_familys_layers_are_found_and_read(tmp_path, make_model, family, level):
    path = make_model(tmp_path / family, model_type=family, **FAMILIES[family])
    found = layer_features(path, MixtureKind(level, input="sample"), QUESTIONS[:3])
    pick = (lambda layer: layer) if level == "block" else (lambda layer: layer.mlp)
    for row, text in enumerate(QUESTIONS[:3]):
        for features, states in zip(found, inputs_of(path, text, pick), strict=True):
            torch.testing.assert_close(features[row], states.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_where_a_family_norms_before_the_feed_forward_part_the_feature_is_normed(dense):
    layer = AutoModelForCausalLM.from_pretrained(dense).model.layers[2]
    raw = inputs_of(dense, QUESTIONS[0], lambda one: one.post_attention_layernorm)[2]
    found = layer_features(dense, MixtureKind("ffn", input="token"), QUESTIONS[:1])[2]
    with torch.no_grad():
        torch.testing.assert_close(found, layer.post_attention_layernorm(raw))


def test_tokens_come_text_after_text_special_ones_included(dense):
    texts = [QUESTIONS[3], "x", QUESTIONS[0]]
    found = layer_features(dense, KINDS["ffn token"], texts)
    for index, features in enumerate(found):
        alone = [inputs_of(dense, text, lambda layer: layer.mlp)[index] for text in texts]
        torch.testing.assert_close(features, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert len(found[0]) == sum(len(text) + 1 for text in texts)


def test_of_many_tokens_every_so_many_th_is_kept(dense):
    whole = layer_features(dense, KINDS["ffn token"], QUESTIONS)
    reader = LayerReader(dense, KINDS["ffn token"])
    some = reader.features(QUESTIONS, most=whole[0].numel() * 4 // 3)
    for few, all_of_them in zip(some, whole, strict=True):
        torch.testing.assert_close(few, all_of_them[::3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_batch_and_padding_do_not_change_a_feature(dense, kind):
    texts = [*QUESTIONS, "x", "a much longer text, so that all the others are padded " * 4]
    reader = LayerReader(dense, kind)
    together = reader.features(texts)
    alone = [reader.features([text]) for text in texts]
    for index, features in enumerate(together):
        expected = torch.cat([one[index] for one in alone])
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", ["block", "ffn"])
def test_long_prompts_are_read_as_the_mixture_reads_them(tmp_path, make_model, dense, level):
    """Whole; of what its context cannot hold the end, as its own runner reads that."""
    long = make_model(tmp_path / "dense", seed=5, max_position_embeddings=700)
    kind = MixtureKind(level, input="sample")
    texts = ["Q: 12 9 " * 70 + "a tail of words", "0123456789" * 40 + "window sill " * 40, "x"]
    prompts = {name: own + texts for name, own in PROMPTS.items()}
    routers = initialise(long, kind, prompts)
    path = write_layers(tmp_path / "out", dict.fromkeys(PROMPTS, long), long, routers, kind=kind)
    features = LayerReader(long, kind).features(texts)
    for row, route in enumerate(inspect_routes(path, texts)):
        for layer, router, seen in zip(route.layers, routers, features, strict=True):
            expected = router.logits(seen[row : row + 1])[0].softmax(dim=0)
            assert list(layer.probability.values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_shared_layers_have_no_router(dense):
    shared = layer_features(dense, MixtureKind("block", shared_layers=3), QUESTIONS)
    whole = layer_features(dense, MixtureKind("block"), QUESTIONS)
    assert len(shared) == 1
    torch.testing.assert_close(shared[0], whole[3])


def test_one_router_stands_before_the_first_layer_that_models_do_not_share(dense):
    one = layer_features(dense, MixtureKind("model", shared_layers=2), QUESTIONS)
    whole = layer_features(dense, MixtureKind("block"), QUESTIONS)
    assert len(one) == 1
    torch.testing.assert_close(one[0], whole[2])


def test_an_empty_text_is_its_opening_token_or_zeros(dense, experts):
    assert layer_features(dense, KINDS["block"], ["", "a"])[0].any(dim=1).all()
    found = layer_features(experts["numbers"], KINDS["block"], ["", "a"])
    assert found[0].any(dim=1).tolist() == [False, True]
    assert len(layer_features(experts["numbers"], KINDS["ffn token"], ["", "a"])[0]) == 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("router", ["linear", "mlp"])
def test_every_router_knows_its_own_prompts(dense, kind, router):
    kind = MixtureKind(kind.level, router, kind.input, 1, kind.shared_layers)
    routers = initialise(dense, kind, PROMPTS, None)
    assert len(routers) == (1 if kind.level == "model" else 4)
    assert all(isinstance(one, MLPRouter if router == "mlp" else LinearRouter) for one in routers)
    reader = LayerReader(dense, MixtureKind(kind.level, shared_layers=kind.shared_layers))
    for router, features in zip(routers, reader.features(OWN), strict=True):
        assert share_of_right(router, features) > 0.9
        assert 1 <= router.condition < float("inf")


@pytest.mark.parametrize("initialisation", ["mean_difference", "nearest_mean", "random"])
def test_other_initialisations_and_negatives_are_possible(dense, initialisation):
    negatives = {"words": PROMPTS["numbers"]}
    plain = initialise(dense, KINDS["block"], PROMPTS, initialisation=initialisation)
    told = initialise(dense, KINDS["block"], PROMPTS, negatives, initialisation=initialisation)
    same = torch.equal(plain[1].weight, told[1].weight)
    assert same == (initialisation == "random")


def test_random_routers_differ_by_layer_and_by_seed(dense):
    def made(seed):
        return initialise(dense, KINDS["block"], PROMPTS, initialisation="random", seed=seed)

    assert torch.equal(made(1)[0].weight, made(1)[0].weight)
    assert not torch.allclose(made(1)[0].weight, made(2)[0].weight)


def test_permuting_experts_permutes_logits(dense):
    order = ["signs", "numbers", "words"]
    names = list(PROMPTS)
    straight = initialise(dense, KINDS["block"], PROMPTS)
    permuted = initialise(dense, KINDS["block"], {name: PROMPTS[name] for name in order})
    features = layer_features(dense, KINDS["block"], QUESTIONS)
    for one, other, seen in zip(straight, permuted, features, strict=True):
        expected = one.logits(seen)[:, [names.index(name) for name in order]]
        torch.testing.assert_close(other.logits(seen), expected, rtol=1e-3, atol=1e-3)


def test_stock_targets_get_routers_without_bias_that_route_alike(dense):
    kind = KINDS["ffn token"]
    bare = initialise(dense, kind, PROMPTS, bias=False)
    full = initialise(dense, kind, PROMPTS)
    tokens = layer_features(dense, kind, QUESTIONS)
    for one, other, seen in zip(bare, full, tokens, strict=True):
        assert not one.bias.any()
        agree = one.logits(seen).argmax(dim=1) == other.logits(seen).argmax(dim=1)
        assert agree.double().mean() > 0.7
    with pytest.raises(MixtureError, match="use router: linear"):
        initialise(dense, MixtureKind("ffn", "mlp", "token"), PROMPTS, bias=False)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_scores_of_items_tell_who_is_good_where(dense, kind):
    scores = torch.zeros(len(OWN), 3)
    for expert in range(3):
        scores[20 * expert : 20 * expert + 20, expert] = 1.0
    routers = initialise_from_scores(dense, kind, ScoreTable(OWN, scores))
    reader = LayerReader(dense, MixtureKind(kind.level, shared_layers=kind.shared_layers))
    for router, features in zip(routers, reader.features(OWN), strict=True):
        assert share_of_right(router, features) > 0.85


def test_what_cannot_be_read_is_refused(dense, tmp_path, make_model):
    with pytest.raises(MixtureError, match=r"4 of 4 layers .* leave none"):
        layer_features(dense, MixtureKind("block", shared_layers=4), ["a"])
    with pytest.raises(UnknownName, match='did you mean "random"'):
        initialise(dense, KINDS["block"], PROMPTS, initialisation="randon")
    with pytest.raises(MixtureError, match="expert 1 has no prompts"):
        initialise(dense, KINDS["block"], {"a": ["x"], "b": []})
    loose = torch.nn.Module()
    loose.fc1, loose.fc2 = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    with pytest.raises(MixtureError, match="0 modules of Module look like its feed-forward part"):
        feed_forward(loose)
