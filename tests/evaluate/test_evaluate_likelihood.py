import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutputWithPast

from modelglue.errors import EvaluationError
from modelglue.evaluate import likelihood as scoring
from modelglue.evaluate import passes
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.kvcache import turned
from modelglue.evaluate.miniature import _made

# Families whose attention takes a tree mask, with a window that binds where there is one.
TREE = {
    "llama": {},
    "qwen2": {},
    "gpt_neox": {},
    "gemma2": {"sliding_window": 16, "head_dim": 8},
    "mistral": {"sliding_window": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": {"sliding_window": 16},
}
# ALiBi and state-space models have no position ids; convolutions see what stands beside them.
PLAIN = {
    "bloom": {},
    "mamba": {},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
}
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
SHOTS = "Is snow white? yes\n\nIs coal white? no\n\n"
QUESTIONS = [f"{SHOTS}Is {thing} white?" for thing in ("milk", "a raven in winter", "tar")] * 4
ANSWERS = [[" yes", " no", " not at all", " yes and no"][:n] for n in (2, 3, 4)] * 4


@pytest.fixture(scope="module", params=[*TREE, *PLAIN])
def model(
    request: pytest.FixtureRequest,
    make_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> HuggingFaceModel:
    path = tmp_path_factory.mktemp("family") / request.param
    sizes = {**TREE, **PLAIN}[request.param]
    model = HuggingFaceModel.load(make_model(path, model_type=request.param, **sizes))
    # A state-space model would amplify rounding.
    return model if request.param == "mamba" else sharpened(model)


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


@pytest.mark.parametrize(
    ("contexts", "continuations"), [(CONTEXTS, CONTINUATIONS), (QUESTIONS, ANSWERS)]
)
def test_likelihoods_are_those_of_a_loop_over_choices(
    model: HuggingFaceModel, contexts: list[str], continuations: list[list[str]]
) -> None:
    found = model.loglikelihoods(contexts, continuations)
    for context, texts, likelihoods in zip(contexts, continuations, found, strict=True):
        for text, likelihood in zip(texts, likelihoods, strict=True):
            total, tokens, greedy = naive(model, context, text)
            assert likelihood.total == pytest.approx(total, abs=2e-5)
            assert (likelihood.tokens, likelihood.greedy) == (tokens, greedy)
            assert likelihood.bytes == len(text.encode())


def test_the_tree_is_used_where_the_family_takes_it(model: HuggingFaceModel) -> None:
    model.loglikelihoods(CONTEXTS, CONTINUATIONS)
    model.loglikelihoods(QUESTIONS, ANSWERS)
    expected = model.module.config.model_type in TREE
    assert {layout for layout, _ in model._scorer._works} == {"tree", "prefix"}
    assert set(model._scorer._works.values()) == {expected}


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
    assert set(other._scorer._works.values()) == {True}
    assert_equal(found, expected)


def ignoring_masks(*arguments: Any, **named: Any) -> Any:
    """An attention that is causal whatever it is told, as flash attention is."""
    module, query, key, value, _, *rest = arguments
    return sdpa_attention_forward(module, query, key, value, None, *rest, **named)


def refusing_masks(*arguments: Any, **named: Any) -> Any:
    if arguments[4] is not None:
        raise ValueError("no masks here")
    return sdpa_attention_forward(*arguments, **named)


@contextmanager
def attention(model: HuggingFaceModel, function: Callable[..., Any]) -> Iterator[HuggingFaceModel]:
    AttentionInterface.register(function.__name__, function)
    model.module.set_attn_implementation(function.__name__)
    yield HuggingFaceModel(model.module, model.tokenizer)
    model.module.set_attn_implementation("sdpa")


@pytest.mark.parametrize("function", [ignoring_masks, refusing_masks])
@pytest.mark.parametrize(
    ("contexts", "continuations"), [(CONTEXTS, CONTINUATIONS), (QUESTIONS, ANSWERS)]
)
def test_an_attention_that_takes_no_tree_gets_plain_rows(
    roomy: HuggingFaceModel,
    function: Callable[..., Any],
    contexts: list[str],
    continuations: list[list[str]],
) -> None:
    expected = roomy.loglikelihoods(contexts, continuations)
    with attention(roomy, function) as other:
        found = other.loglikelihoods(contexts, continuations)
        again = other.loglikelihoods(contexts, continuations)
    assert set(other._scorer._works.values()) == {False}
    assert_equal(found, expected)
    assert again == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrecked_candidate_has_no_say_in_how_others_are_scored(
    make_model: Callable[..., Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    """Whoever goes on with a search begins with another candidate, and must score alike."""
    model = HuggingFaceModel.load(make_model(tmp_path / "m"), dtype=dtype)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(30.0 if parameter.ndim > 1 else 5.0)
    model.loglikelihoods(CONTEXTS, CONTINUATIONS)
    model.loglikelihoods(QUESTIONS, ANSWERS)
    assert set(model._scorer._works) == {("tree", False), ("prefix", False)}
    assert all(model._scorer._works.values())


def test_finding_out_what_a_model_takes_leaves_its_weights_and_the_dice_alone(
    roomy: HuggingFaceModel,
) -> None:
    _made.cache_clear()
    before = {name: tensor.clone() for name, tensor in roomy.module.state_dict().items()}
    dice = torch.get_rng_state()
    HuggingFaceModel(roomy.module, roomy.tokenizer).loglikelihoods(CONTEXTS, CONTINUATIONS)
    assert torch.equal(torch.get_rng_state(), dice)
    assert all(torch.equal(before[n], t) for n, t in roomy.module.state_dict().items())
    assert _made.cache_info().currsize == 1


LONGROPE = {
    "model_type": "phi3",
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 48,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 48,
        "short_factor": [1.0, 1.5, 1.1, 1.2],
        "long_factor": [8.0, 3.0, 11.0, 6.0],
    },
}


def test_what_a_text_means_does_not_depend_on_the_length_of_others(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """LongRoPE turns a whole batch by its longest row: 48 tokens are short, 49 are long."""
    model = sharpened(HuggingFaceModel.load(make_model(tmp_path / "m", **LONGROPE)))
    assert turned(model.module.config, 48) != turned(model.module.config, 49)
    contexts = [*CONTEXTS, *("y" * n for n in range(40, 52, 3)), *QUESTIONS]
    continuations = [*CONTINUATIONS, *[[" abc", " abcdefghi", " d"]] * 4, *ANSWERS]
    found = model.loglikelihoods(contexts, continuations)
    changes = 0
    for context, texts, likelihoods in zip(contexts, continuations, found, strict=True):
        for text, likelihood in zip(texts, likelihoods, strict=True):
            total, *_ = naive(model, context, text)
            assert likelihood.total == pytest.approx(total, abs=2e-5)
        depths = {len(context.rstrip() + text) - 1 > 48 for text in texts if context.strip()}
        changes += len(depths) > 1
    assert changes  # within an item, too


class HeadOfItsOwn(LlamaForCausalLM):
    """Its logits come from the weight, and the module around that is never called."""

    kept = slice(None)

    def forward(self, *given: Any, position_ids: Any = None, **named: Any) -> Any:
        states = self.model(*given, position_ids=position_ids, **named).last_hidden_state
        logits = torch.nn.functional.linear(states, self.lm_head.weight)
        return CausalLMOutputWithPast(logits=logits[:, self.kept])


def test_a_model_that_does_not_call_its_head_is_scored_all_the_same(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharpened(HuggingFaceModel.load(make_model(tmp_path / "m")))
    expected = [model.loglikelihoods(CONTEXTS, CONTINUATIONS)]
    expected.append(model.loglikelihoods(QUESTIONS, ANSWERS))
    model.module.__class__ = HeadOfItsOwn
    other = HuggingFaceModel(model.module, model.tokenizer)
    assert_equal(other.loglikelihoods(CONTEXTS, CONTINUATIONS), expected[0])
    assert_equal(other.loglikelihoods(QUESTIONS, ANSWERS), expected[1])
    monkeypatch.setattr(HeadOfItsOwn, "kept", slice(-1, None))
    with pytest.raises(EvaluationError, match=r"HeadOfItsOwn gives logits of 1 places where 3"):
        other.loglikelihoods(["abc"], [["d"]])


@pytest.mark.parametrize(("most", "kept"), [(500, 0), (3000, 1), (6000, 2)])
def test_the_latest_plans_are_remembered_up_to_a_number_of_numbers(
    roomy: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch, most: int, kept: int
) -> None:
    expected = roomy.loglikelihoods(QUESTIONS, ANSWERS)
    other = HuggingFaceModel(roomy.module, roomy.tokenizer)
    monkeypatch.setattr(scoring, "_REMEMBERED", most)
    for _ in range(2):
        assert_equal(other.loglikelihoods(QUESTIONS, ANSWERS), expected)
        assert_equal(other.loglikelihoods(QUESTIONS[::-1], ANSWERS[::-1]), expected[::-1])
    plans = other._scorer._plans.values()
    assert len(plans) == kept
    assert sum(each.numbers for plan in plans for each in plan) == other._scorer._held <= most


def assert_equal(found: Any, expected: Any) -> None:
    for one, two in zip(found, expected, strict=True):
        assert [x.total for x in one] == pytest.approx([x.total for x in two], abs=2e-5)


@pytest.fixture(scope="module")
def roomy(
    make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> HuggingFaceModel:
    path = make_model(tmp_path_factory.mktemp("roomy") / "m", max_position_embeddings=96)
    return sharpened(HuggingFaceModel.load(path))


@contextmanager
def inputs(module: Any) -> Iterator[list[torch.Size]]:
    """The shapes of all that a module is run on."""
    shapes: list[torch.Size] = []

    def note(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        shapes.append((arguments[0] if arguments else named["input_ids"]).shape)

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    yield shapes
    handle.remove()


def test_what_all_items_begin_with_is_computed_once(roomy: HuggingFaceModel) -> None:
    """A byte is a token. An item costs its question, the space that all of its choices begin with,
    and each choice without its last letter: "ye" and "n" are 3.
    """
    roomy.loglikelihoods(QUESTIONS, ANSWERS)  # finds out that it may
    with inputs(roomy.module) as shapes:
        roomy.loglikelihoods(QUESTIONS, ANSWERS)
    shared = len(SHOTS + "Is ")
    own = [len(question) - shared for question in QUESTIONS]
    branches = [{2: 1 + 3, 3: 1 + 3 + 9, 4: 1 + 3 + 9 + 9}[len(texts)] for texts in ANSWERS]
    assert shapes[0] == (1, shared)
    rows, *widths = zip(*shapes[1:], strict=True)
    assert set(rows) == {1}
    assert sum(widths[0]) == sum(own) + sum(branches)
    assert len(shapes) < len(QUESTIONS)


def test_a_batch_size_bounds_the_items_behind_a_prefix(roomy: HuggingFaceModel) -> None:
    expected = roomy.loglikelihoods(QUESTIONS, ANSWERS)
    roomy.batch_size = 2
    with inputs(roomy.module) as shapes:
        found = roomy.loglikelihoods(QUESTIONS, ANSWERS)
    roomy.batch_size = "auto"
    assert len(shapes) == 1 + len(QUESTIONS) // 2
    assert_equal(found, expected)


def test_subjects_with_examples_of_their_own_have_their_own_prefix(
    roomy: HuggingFaceModel,
) -> None:
    other = [question.replace("snow", "soot") for question in QUESTIONS]
    roomy.loglikelihoods(QUESTIONS, ANSWERS)
    with inputs(roomy.module) as shapes:
        together = roomy.loglikelihoods(QUESTIONS + other, ANSWERS * 2)
    assert shapes.count((1, len(SHOTS + "Is "))) == 2
    apart = roomy.loglikelihoods(QUESTIONS, ANSWERS) + roomy.loglikelihoods(other, ANSWERS)
    assert_equal(together, apart)


def test_items_with_one_context_share_all_but_its_last_token(roomy: HuggingFaceModel) -> None:
    context = SHOTS + "Is milk white?"
    texts = [[f" {n} things", f" {n + 1} more"] for n in range(12)]
    found = roomy.loglikelihoods([context] * 12, texts)
    with inputs(roomy.module) as shapes:
        again = roomy.loglikelihoods([context] * 12, texts)
    assert shapes[0] == (1, len(context) - 1)
    assert found == again
    assert_equal(found, [roomy.loglikelihoods([context], [pair])[0] for pair in texts])


def test_items_without_continuations_stand_among_others(roomy: HuggingFaceModel) -> None:
    expected = roomy.loglikelihoods(QUESTIONS, ANSWERS)
    some = [texts if n % 3 else [] for n, texts in enumerate(ANSWERS)]
    found = roomy.loglikelihoods(QUESTIONS, some)
    assert_equal(found, [one if n % 3 else [] for n, one in enumerate(expected)])


def test_a_cut_context_does_not_keep_the_others_from_sharing(roomy: HuggingFaceModel) -> None:
    """96 positions; the long questions lose their beginning, each another part of it."""
    long = [SHOTS + "Is" + " snow" * n + " white?" for n in (10, 11, 13)]
    questions = [*QUESTIONS, *long]
    texts = [*ANSWERS, *[[" yes", " no"]] * 3]
    roomy.loglikelihoods(questions, texts)
    with inputs(roomy.module) as shapes:
        found = roomy.loglikelihoods(questions, texts)
    assert (1, len(SHOTS + "Is ")) in shapes
    alone = [roomy.loglikelihoods([q], [t])[0] for q, t in zip(questions, texts, strict=True)]
    assert_equal(found, alone)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_half_precision_takes_the_tree_and_stays_near(
    make_model: Callable[..., Path], tmp_path: Path, model_type: str
) -> None:
    exact = sharpened(
        HuggingFaceModel.load(make_model(tmp_path / "m", model_type=model_type, **TREE[model_type]))
    )
    expected = exact.loglikelihoods(QUESTIONS, ANSWERS)
    half = HuggingFaceModel(exact.module.bfloat16(), exact.tokenizer)
    found = half.loglikelihoods(QUESTIONS, ANSWERS)
    assert set(half._scorer._works.values()) == {True}
    for one, two in zip(found, expected, strict=True):
        for a, b in zip(one, two, strict=True):
            assert a.total == pytest.approx(b.total, abs=0.1 * a.tokens)


@pytest.mark.parametrize(
    ("contexts", "continuations"), [(CONTEXTS, CONTINUATIONS), (QUESTIONS, ANSWERS)]
)
def test_logits_held_at_once_are_bounded(
    roomy: HuggingFaceModel,
    contexts: list[str],
    continuations: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = roomy.loglikelihoods(contexts, continuations)
    monkeypatch.setattr(passes, "_MOST_LOGITS", 60 * 264)  # 60 tokens of this vocabulary
    heads: list[int] = []
    handle = roomy.module.lm_head.register_forward_hook(
        lambda _, __, logits: heads.append(logits.numel())
    )
    other = HuggingFaceModel(roomy.module, roomy.tokenizer)  # that has planned nothing yet
    assert_equal(other.loglikelihoods(contexts, continuations), expected)
    handle.remove()
    assert max(heads) <= 60 * 264


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
