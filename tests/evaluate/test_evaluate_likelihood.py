import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modelglue.errors import EvaluationError
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.likelihood import LikelihoodScorer

# Families whose attention takes a tree mask, with a window that binds where there is one.
TREE = {
    "llama": {},
    "qwen2": {},
    "gpt_neox": {},
    "gemma2": {"sliding_window": 16, "head_dim": 8},
    "mistral": {"sliding_window": 16},
}
# ALiBi has no position ids.
PLAIN = {"bloom": {}}
CONTEXTS = [
    "the sky is",
    "a" * 30 + " b",
    "",
    "ends in a space ",
    "one two three four five six seven eight",
]
CONTINUATIONS = [
    [" blue", " grey and blue", " b"],
    [" c", " cc d"],
    ["x", "yz"],
    ["there", "you all"],
    [" nine", " ten eleven twelve", " nine and ten", "é"],
]


@pytest.fixture(scope="module", params=[*TREE, *PLAIN])
def model(
    request: pytest.FixtureRequest,
    make_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> HuggingFaceModel:
    path = tmp_path_factory.mktemp("family") / request.param
    sizes = {**TREE, **PLAIN}[request.param]
    return sharpened(HuggingFaceModel.load(make_model(path, model_type=request.param, **sizes)))


def sharpened(model: HuggingFaceModel) -> HuggingFaceModel:
    """Larger weights: at its initial ones a model hardly looks at its context."""
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    return model


def naive(model: HuggingFaceModel, context: str, continuation: str) -> tuple[float, int, bool]:
    """One choice, one plain forward pass, as lm-evaluation-harness encodes it."""
    head = context.rstrip()
    before = model.tokenizer(head).input_ids
    whole = model.tokenizer(context + continuation).input_ids
    if not before:
        before, whole = [1], [1, *whole]
    with torch.no_grad():
        logs = model.module(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    places = range(len(before), len(whole))
    return (
        sum(float(logs[place - 1, whole[place]]) for place in places),
        len(places),
        all(int(logs[place - 1].argmax()) == whole[place] for place in places),
    )


def test_likelihoods_are_those_of_a_loop_over_choices(model: HuggingFaceModel) -> None:
    found = model.loglikelihoods(CONTEXTS, CONTINUATIONS)
    for context, texts, likelihoods in zip(CONTEXTS, CONTINUATIONS, found, strict=True):
        for text, likelihood in zip(texts, likelihoods, strict=True):
            total, tokens, greedy = naive(model, context, text)
            assert likelihood.total == pytest.approx(total, abs=2e-5)
            assert (likelihood.tokens, likelihood.greedy) == (tokens, greedy)
            assert likelihood.bytes == len(text.encode())


def test_the_tree_is_used_where_the_family_takes_it(model: HuggingFaceModel) -> None:
    model.loglikelihoods(CONTEXTS, CONTINUATIONS)
    expected = model.module.config.model_type in TREE
    assert set(model._scorer._tree_works.values()) == {expected}


def test_neither_batch_nor_order_nor_company_changes_a_likelihood(
    model: HuggingFaceModel,
) -> None:
    order = random.Random(0).sample(range(len(CONTEXTS)), len(CONTEXTS))
    together = model.loglikelihoods(CONTEXTS, CONTINUATIONS)
    shuffled = model.loglikelihoods([CONTEXTS[i] for i in order], [CONTINUATIONS[i] for i in order])
    model.batch_size = 2
    in_twos = model.loglikelihoods(CONTEXTS, CONTINUATIONS)
    model.batch_size = "auto"
    for place, i in enumerate(order):
        alone = model.loglikelihoods([CONTEXTS[i]], [CONTINUATIONS[i]])[0]
        for ways in zip(together[i], shuffled[place], in_twos[i], alone, strict=True):
            assert [way.total for way in ways] == pytest.approx([ways[0].total] * 4, abs=2e-5)


@pytest.fixture(scope="module")
def llama(
    make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> HuggingFaceModel:
    path = make_model(tmp_path_factory.mktemp("llama") / "m", max_position_embeddings=64)
    return sharpened(HuggingFaceModel.load(path))


def test_eager_attention_gets_an_additive_mask(llama: HuggingFaceModel) -> None:
    expected = llama.loglikelihoods(CONTEXTS, CONTINUATIONS)
    llama.module.set_attn_implementation("eager")
    other = HuggingFaceModel(llama.module, llama.tokenizer)
    found = other.loglikelihoods(CONTEXTS, CONTINUATIONS)
    llama.module.set_attn_implementation("sdpa")
    assert other._scorer._tree_works == {False: True}
    for one, two in zip(expected, found, strict=True):
        assert [x.total for x in one] == pytest.approx([x.total for x in two], abs=2e-5)


def test_a_mask_that_is_ignored_is_found_out(
    llama: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llama.loglikelihoods(CONTEXTS, CONTINUATIONS)
    monkeypatch.setattr(LikelihoodScorer, "_mask", lambda *_: None)
    other = HuggingFaceModel(llama.module, llama.tokenizer)
    found = other.loglikelihoods(CONTEXTS, CONTINUATIONS)
    assert other._scorer._tree_works == {False: False}
    for one, two in zip(expected, found, strict=True):
        assert [x.total for x in one] == pytest.approx([x.total for x in two], abs=2e-5)


def test_weights_swapped_in_place_are_seen(llama: HuggingFaceModel) -> None:
    before = llama.loglikelihoods(CONTEXTS, CONTINUATIONS)
    parameter = llama.module.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        parameter.mul_(-1.0)
    after = llama.loglikelihoods(CONTEXTS, CONTINUATIONS)
    with torch.no_grad():
        parameter.mul_(-1.0)
    assert before[0][0].total != after[0][0].total
    assert llama.loglikelihoods(CONTEXTS, CONTINUATIONS) == before


def test_too_long_a_context_loses_its_beginning(llama: HuggingFaceModel) -> None:
    text = "x y z " * 30
    kept = text.rstrip()[-62:]  # 62 bytes and 3 of the continuation: 65 tokens, 64 of them input
    (long,), (short,) = llama.loglikelihoods([text.rstrip(), kept], [[" ab"], [" ab"]])
    assert long.total == pytest.approx(short.total, abs=2e-5)


def test_a_continuation_that_fills_the_context_is_scored_whole(llama: HuggingFaceModel) -> None:
    ((likelihood,),) = llama.loglikelihoods(["x"], [[" " + "a" * 63]])
    assert likelihood.tokens == 64


def test_a_continuation_longer_than_the_context_is_an_error(llama: HuggingFaceModel) -> None:
    with pytest.raises(EvaluationError, match=r"needs 65 tokens, the model's context holds 64"):
        llama.loglikelihoods(["x"], [[" b", " " + "a" * 64]])
    with pytest.raises(EvaluationError, match=r"needs 65 tokens, the model's context holds 64"):
        llama.loglikelihoods([""], [["a" * 65]])


@pytest.mark.parametrize("context", ["x", ""])
def test_a_continuation_that_adds_no_token_is_an_error(
    llama: HuggingFaceModel, context: str
) -> None:
    with pytest.raises(EvaluationError, match="the continuation '' adds no token to its context"):
        llama.loglikelihoods([context], [[""]])


def test_a_continuation_that_melts_into_its_context_is_an_error() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from modelglue.evaluate.encoding import Encoder

    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=inner), 64)
    with pytest.raises(EvaluationError, match="the continuation 'b' adds no token"):
        encoder.continued(["a"], [["b"]])


def test_nan_is_an_error_and_never_a_score(llama: HuggingFaceModel) -> None:
    weight = llama.module.model.norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0] = torch.nan
    with pytest.raises(EvaluationError, match="not finite"):
        llama.loglikelihoods(["a"], [["b", "c"]])
    with pytest.raises(EvaluationError, match="not finite"):
        llama.generate(["a"], max_new_tokens=2)
    with torch.no_grad():
        weight.copy_(kept)


def test_no_items_are_no_work(llama: HuggingFaceModel) -> None:
    assert llama.loglikelihoods([], []) == []
    assert llama.generate([], max_new_tokens=3) == []
    assert llama.loglikelihoods(["a"], [[]]) == [[]]
