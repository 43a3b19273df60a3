"""Experts that answer together: naive loops over their distributions, and bundles that do so."""

import json

import pytest
import torch
from mixture_samples import PROMPTS, QUESTIONS
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelglue.errors import MixtureError
from modelglue.evaluate.generation import Sampling, draws_of, sampled
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.mix import mix
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.together import shares

TWO = MixtureKind(top_k=2)
CONTINUATIONS = [[" yes", " no, never"], [" 1"], [" a", " b", " c"]] * 2


@pytest.fixture(scope="module")
def alike(tmp_path_factory, make_model):
    """Three models with one tokenizer, of two architectures, one with a padded embedding."""
    root = tmp_path_factory.mktemp("alike")
    large = {"initializer_range": 0.3}  # so that what they say differs
    return {
        "numbers": make_model(root / "a", seed=1, **large),
        "words": make_model(root / "b", seed=2, model_type="qwen2", **large),
        "signs": make_model(root / "c", seed=3, vocab_size=272, **large),
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, alike):
    out = tmp_path_factory.mktemp("together") / "bundle"
    mix(alike, PROMPTS, out, kind=TWO)
    # Closed forms are sure; what is tested is the mixing.
    content = json.loads((out / "mixture.json").read_text())
    assert content["top_k"] == 2
    loaded = Bundle.load(out)
    object.__setattr__(loaded.router, "weight", loaded.router.weight * 0.02)
    object.__setattr__(loaded.router, "bias", loaded.router.bias * 0.02)
    return loaded


class Naive:
    """Whole rows through every expert at every token, in fp64 from the logits on."""

    def __init__(self, bundle, alike):
        self.bundle = bundle
        self.models = [AutoModelForCausalLM.from_pretrained(path) for path in alike.values()]
        self.tokenizer = AutoTokenizer.from_pretrained(alike["numbers"])

    @torch.no_grad()
    def distribution(self, prompt, ids):
        probabilities = torch.tensor(self.bundle.route([prompt])[0].probabilities)
        top, chosen = probabilities.topk(2)
        mixed = 0
        for weight, expert in zip(top / top.sum(), chosen, strict=True):
            logits = self.models[expert](torch.tensor([ids])).logits[0, :, :264]
            mixed = mixed + weight.double() * logits.double().softmax(dim=-1)
        return mixed

    def score(self, prompt, continuation):
        ids = self.tokenizer(prompt + continuation).input_ids
        start = len(self.tokenizer(prompt).input_ids)
        mixed = self.distribution(prompt, ids)[start - 1 : -1].log()
        targets = torch.tensor(ids[start:])
        total = mixed.gather(1, targets[:, None]).sum()
        return float(total), bool((mixed.argmax(dim=1) == targets).all())

    def greedy(self, prompt, count):
        ids = self.tokenizer(prompt).input_ids
        start = len(ids)
        for _ in range(count):
            token = int(self.distribution(prompt, ids)[-1].argmax())
            if token == 2:
                break
            ids.append(token)
        return self.tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.fixture(scope="module")
def naive(bundle, alike):
    return Naive(bundle, alike)


def test_shares_are_the_likeliest_scaled_to_one_and_ties_go_to_the_first():
    assert shares((0.2, 0.3, 0.5), 1).experts == (2,)
    found = shares((0.2, 0.3, 0.5), 2)
    assert (found.experts, found.weights) == ((1, 2), pytest.approx((0.375, 0.625)))
    assert shares((0.25, 0.25, 0.5, 0.0), 2).experts == (0, 2)
    assert shares((0.5, 0.5), 2).weights == (0.5, 0.5)


def test_experts_share_the_work(bundle):
    for route in bundle.route(QUESTIONS):
        assert min(shares(route.probabilities, 2).weights) > 0.05


def test_likelihoods_are_those_of_the_mixed_distribution(bundle, naive):
    found = bundle.loglikelihoods(QUESTIONS, CONTINUATIONS)
    for question, texts, numbers in zip(QUESTIONS, CONTINUATIONS, found, strict=True):
        for text, one in zip(texts, numbers, strict=True):
            total, greedy = naive.score(question, text)
            assert one.total == pytest.approx(total, abs=1e-4)
            assert (one.tokens, one.bytes, one.greedy) == (len(text), len(text), greedy)


def test_the_mixed_distributions_own_best_token_is_greedy(bundle, naive):
    question = QUESTIONS[0]
    ids = naive.tokenizer(question).input_ids
    order = naive.distribution(question, ids)[-1].argsort(descending=True).tolist()
    words = [naive.tokenizer.decode([token]) for token in order[:40]]
    printable = [word for word in words if word.isascii() and word.strip() == word and word]
    found = bundle.loglikelihoods([question], [printable])[0]
    best = naive.tokenizer.decode([order[0]])
    assert [one.greedy for one in found] == [word == best for word in printable]


def test_greedy_completions_follow_the_mixed_distribution(bundle, naive):
    expected = [naive.greedy(question, 10) for question in QUESTIONS]
    assert bundle.generate(QUESTIONS, max_new_tokens=10) == expected
    assert len(set(expected)) == len(QUESTIONS)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}])
def test_batched_equals_single(bundle, options):
    prompts = [*QUESTIONS, QUESTIONS[0], "x" * 70]
    together = bundle.generate(prompts, max_new_tokens=12, **options)
    alone = [bundle.generate([p], max_new_tokens=12, **options)[0] for p in prompts]
    assert together == alone
    backwards = bundle.generate(prompts[::-1], max_new_tokens=12, **options)
    assert backwards[::-1] == together
    one = [bundle.loglikelihoods([q], [c])[0] for q, c in zip(QUESTIONS, CONTINUATIONS)]
    for own, other in zip(bundle.loglikelihoods(QUESTIONS, CONTINUATIONS), one, strict=True):
        assert [a.total for a in own] == pytest.approx([b.total for b in other], abs=1e-4)


def test_what_is_sampled_follows_the_mixed_distribution(bundle, naive):
    question = QUESTIONS[1]
    logs = naive.distribution(question, naive.tokenizer(question).input_ids)[-1].log()[None]
    for seed in range(10):
        sampling = Sampling(temperature=1.3, top_p=0.8, seed=seed)
        draw = torch.tensor(draws_of(seed, question, 1))
        expected = naive.tokenizer.decode(sampled(logs, draw, sampling))
        written = bundle.generate(
            [question], max_new_tokens=1, temperature=1.3, top_p=0.8, seed=seed
        )
        assert written == [expected]


def test_stops_end_an_answer(bundle):
    whole = bundle.generate(QUESTIONS[:1], max_new_tokens=12)[0]
    stop = whole[4:6]
    assert bundle.generate(QUESTIONS[:1], max_new_tokens=12, stop=[stop])[0] == whole.split(stop)[0]


def test_identical_experts_equal_the_one(tmp_path, alike):
    path = alike["numbers"]
    two = {"a": path, "b": path}
    prompts = {"a": PROMPTS["numbers"], "b": PROMPTS["words"]}
    mix(two, prompts, tmp_path / "twins", kind=TWO)
    mix({"a": path}, {"a": PROMPTS["numbers"]}, tmp_path / "one")
    twins, one = Bundle.load(tmp_path / "twins"), Bundle.load(tmp_path / "one")
    written = twins.generate(QUESTIONS, max_new_tokens=10)
    assert written == one.generate(QUESTIONS, max_new_tokens=10)
    for mine, theirs in zip(
        twins.loglikelihoods(QUESTIONS, CONTINUATIONS),
        one.loglikelihoods(QUESTIONS, CONTINUATIONS),
        strict=True,
    ):
        assert [a.total for a in mine] == pytest.approx([b.total for b in theirs], abs=1e-4)


def test_all_experts_with_one_sure_router_equal_the_one_that_it_is_sure_of(bundle, alike):
    sure = Bundle.load(bundle.path)
    object.__setattr__(sure.router, "weight", sure.router.weight * 0)
    object.__setattr__(sure.router, "bias", torch.tensor([0.0, 90.0, 0.0]))
    expert = sure.expert(1)
    assert sure.generate(QUESTIONS, max_new_tokens=8) == expert.generate(
        QUESTIONS, max_new_tokens=8
    )


def test_a_conversation_goes_through_the_likeliest_experts_template(bundle, monkeypatch):
    route = bundle.route([QUESTIONS[1]])[0]
    expert = bundle.expert(route.expert)
    monkeypatch.setattr(expert.tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    said = bundle.chat([{"role": "user", "content": QUESTIONS[1]}], max_new_tokens=6)
    assert said == bundle.generate([QUESTIONS[1]], max_new_tokens=6)[0]


def test_parameters_at_work_are_those_of_the_largest_two(bundle):
    sizes = sorted(bundle.expert(i).parameters_stored for i in range(3))
    encoder = bundle.expert(bundle.manifest.encoder).module.get_input_embeddings().weight.numel()
    assert bundle.parameters_active == sum(sizes[1:]) + encoder + 3 * 33
    assert bundle.parameters_stored == sum(sizes) + 3 * 33


def test_experts_without_a_common_vocabulary_are_refused_before_anything_is_written(
    tmp_path, experts
):
    with pytest.raises(MixtureError, match=r"'numbers' and 'words' have no common vocabulary.*"):
        mix(experts, PROMPTS, tmp_path / "out", kind=TWO)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_asks_for_the_impossible_is_refused(damaged):
    with pytest.raises(MixtureError, match="no common vocabulary"):
        Bundle.load(damaged(lambda content: content.update(top_k=2)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (MixtureKind(top_k=4), "top_k: 4 of 3 experts"),
        (MixtureKind("block"), "one checkpoint, not a bundle"),
        (MixtureKind(shared_layers=2), "2 shared layers is one checkpoint"),
        (MixtureKind(input="token"), "whole models cannot change from token to token"),
    ],
)
def test_a_kind_that_is_no_bundle_is_refused(tmp_path, experts, kind, message):
    with pytest.raises(MixtureError, match=message):
        mix(experts, PROMPTS, tmp_path / "out", kind=kind)
