"""A mixture in one checkpoint is the dense model where experts agree, and the chosen parts else."""

import pytest
import torch
from layer_samples import (
    FAMILIES,
    LAYERS,
    LOOSE,
    PROMPTS,
    assembled,
    batch,
    load,
    logits,
    mixture,
    routes,
    save,
    written,
)

from modelglue.mixture.notation import MixtureKind

FFN_TOKEN = MixtureKind("ffn", "mlp", "token", 2)
FFN_SAMPLE = MixtureKind("ffn", "linear", "sample", 1)
BLOCK = MixtureKind("block", "linear", "sample", 1)
STACK = MixtureKind("model", "linear", "sample", 1, 1)
OTHERS = [
    MixtureKind("ffn", "linear", "token", 1),
    MixtureKind("ffn", "linear", "token", 2, 1),
    MixtureKind("ffn", "mlp", "sample", 2),
    MixtureKind("ffn", "mlp", "sample", 1, 1),
    MixtureKind("block", "mlp", "sample", 1),
    MixtureKind("block", "linear", "sample", 1, 1),
    MixtureKind("model", "mlp", "sample", 1, 1),
]


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    """A dense model of each family, made when it is asked for."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = save(tmp_path_factory.mktemp(family) / "dense", family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def experts(tmp_path_factory):
    """Three unlike models of each family."""
    made = {}

    def get(family):
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            made[family] = [save(root / str(i), family, seed=i + 1) for i in range(3)]
        return made[family]

    return get


def named(kind):
    return f"{kind.short}-{kind.top_k}-{kind.shared_layers}"


def cases(kinds, quick):
    """Every family and kind; what is not quick is slow."""
    return [
        pytest.param(
            family,
            kind,
            id=f"{family}-{named(kind)}",
            marks=() if (family, kind) in quick else pytest.mark.slow,
        )
        for family in FAMILIES
        for kind in kinds
        if not (family in LOOSE and kind.level == "ffn")
    ]


def equals_dense(tmp_path, path, kind):
    mixed, model = load(mixture(tmp_path / "out", path, [path] * 3, kind)), load(path)
    inputs = batch(PROMPTS)
    assert (logits(mixed, inputs) - logits(model, inputs)).abs().max() < 1e-5
    expected = written(model, inputs)
    assert written(mixed, inputs) == expected
    assert written(mixed, inputs, use_cache=False) == expected
    assert written(mixed, batch(PROMPTS[1:2])) == expected[1:2]


KINDS = [FFN_TOKEN, FFN_SAMPLE, BLOCK, STACK, *OTHERS]
QUICK = [
    *((family, BLOCK) for family in FAMILIES),
    *((family, FFN_TOKEN) for family in ("gemma2", "phi3", "olmo2")),
    *(("llama", kind) for kind in KINDS),
    *((family, STACK) for family in ("qwen2", "opt")),
]


@pytest.mark.parametrize(("family", "kind"), cases(KINDS, QUICK))
def test_identical_experts_equal_the_dense_model(tmp_path, dense, family, kind):
    equals_dense(tmp_path, dense(family), kind)


@pytest.mark.parametrize(
    ("family", "kind"),
    cases(
        [FFN_SAMPLE, BLOCK, STACK],
        [
            *((family, BLOCK) for family in ("llama", "mistral", "gemma3_text")),
            ("gemma2", FFN_SAMPLE),
            *((family, STACK) for family in ("qwen2", "opt")),
        ],
    ),
)
def test_each_row_is_answered_by_the_parts_it_goes_to(tmp_path, dense, experts, family, kind):
    path, others = dense(family), experts(family)
    mixed = load(mixture(tmp_path / "out", path, others, kind, seed=3))
    inputs = batch(PROMPTS)
    chosen = [routes(mixed, prompt) for prompt in PROMPTS]
    assert len(set(map(tuple, chosen))) > 1, "all rows of the sample go one way"
    together, answers = logits(mixed, inputs), written(mixed, inputs)
    beams = written(mixed, inputs, num_beams=3, max_new_tokens=5)
    start = 0
    for row, (prompt, route) in enumerate(zip(PROMPTS, chosen)):
        alone = assembled(path, others, kind, route).eval()
        expected = logits(alone, batch([prompt]))
        assert (together[start : start + len(prompt)] - expected).abs().max() < 1e-5
        assert answers[row] == written(alone, batch([prompt]))[0]
        assert beams[row] == written(alone, batch([prompt]), num_beams=3, max_new_tokens=5)[0]
        start += len(prompt)


@pytest.mark.parametrize("kind", [FFN_SAMPLE, BLOCK, STACK], ids=named)
def test_a_route_stays_as_it_was_decided_on_the_prompt(tmp_path, dense, experts, kind):
    path, others = dense("llama"), experts("llama")
    mixed = load(mixture(tmp_path / "out", path, others, kind, seed=3))
    inputs = batch(PROMPTS)
    cached = written(mixed, inputs, max_new_tokens=40)
    assert written(mixed, inputs, max_new_tokens=40, use_cache=False) == cached
    after = [routes(mixed, prompt + more) for prompt, more in zip(PROMPTS, cached)]
    assert after != [routes(mixed, prompt) for prompt in PROMPTS], "no route would have changed"


@pytest.mark.parametrize("kind", [FFN_SAMPLE, BLOCK, STACK], ids=named)
def test_padding_on_either_side_changes_no_route(tmp_path, dense, experts, kind):
    mixed = load(mixture(tmp_path / "out", dense("llama"), experts("llama"), kind, seed=3))
    left, right = (logits(mixed, batch(PROMPTS, side=side)) for side in ("left", "right"))
    assert (left - right).abs().max() < 1e-5


@pytest.mark.parametrize("kind", [FFN_SAMPLE, BLOCK], ids=named)
def test_a_conversation_that_goes_on_keeps_its_route(tmp_path, dense, experts, kind):
    path, others = dense("llama"), experts("llama")
    mixed = load(mixture(tmp_path / "out", path, others, kind, seed=3))
    rest = torch.tensor([[5, 17, 230, 77, 201, 8]])
    for prompt in PROMPTS:
        alone = assembled(path, others, kind, routes(mixed, prompt)).eval()
        with torch.inference_mode():
            cache = mixed(torch.tensor([prompt]), use_cache=True).past_key_values
            found = mixed(rest, past_key_values=cache).logits
            expected = alone(torch.cat([torch.tensor([prompt]), rest], dim=1)).logits
        assert (found - expected[:, len(prompt) :]).abs().max() < 1e-5
        assert cache.get_seq_length() == len(prompt) + rest.shape[1]


@pytest.mark.parametrize("kind", [FFN_SAMPLE, BLOCK], ids=named)
def test_rows_of_a_cache_can_be_picked_repeated_and_cut(tmp_path, dense, experts, kind):
    mixed = load(mixture(tmp_path / "out", dense("llama"), experts("llama"), kind, seed=3))
    prompts = [row[:4] for row in PROMPTS]
    nexts = torch.tensor([[9, 8]] * 5)
    with torch.inference_mode():
        cache = mixed(torch.tensor(prompts), use_cache=True).past_key_values
        mixed(nexts[:4], past_key_values=cache)
        cache.crop(-2)
        cache.batch_select_indices(torch.tensor([3, 1, 1]))
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([5, 0, 1, 2, 4]))
        found = mixed(nexts, past_key_values=cache).logits
        expected = mixed(
            torch.cat([torch.tensor([prompts[i] for i in (1, 3, 3, 1, 1)]), nexts], dim=1),
            routing_mask=torch.tensor([[1, 1, 1, 1, 0, 0]] * 5),
        ).logits
    assert (found - expected[:, 4:]).abs().max() < 1e-5


def test_a_cache_filled_by_another_model_is_refused(tmp_path, dense, experts):
    mixed = load(mixture(tmp_path / "out", dense("llama"), experts("llama"), BLOCK))
    ids = torch.tensor([PROMPTS[0]])
    cache = load(dense("llama"))(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="filled by another model"):
        mixed(ids, past_key_values=cache)


def test_a_cache_that_was_emptied_is_routed_anew(tmp_path, dense, experts):
    mixed = load(mixture(tmp_path / "out", dense("llama"), experts("llama"), BLOCK, seed=3))
    one, other = (torch.tensor([row]) for row in (PROMPTS[0], PROMPTS[3]))
    with torch.inference_mode():
        cache = mixed(one, use_cache=True).past_key_values
        cache.reset()
        assert torch.allclose(mixed(other, past_key_values=cache).logits, mixed(other).logits)


def test_sampled_answers_are_those_of_the_chosen_parts(tmp_path, dense, experts):
    path, others = dense("llama"), experts("llama")
    mixed = load(mixture(tmp_path / "out", path, others, BLOCK, seed=3))
    alone = assembled(path, others, BLOCK, routes(mixed, PROMPTS[0])).eval()
    answers = []
    for model in (mixed, alone):
        torch.manual_seed(5)
        answers.append(written(model, batch(PROMPTS[:1]), do_sample=True, temperature=0.7))
    assert answers[0] == answers[1]


def test_layers_outputs_are_told_for_one_route_and_refused_for_several(tmp_path, dense, experts):
    path, others = dense("llama"), experts("llama")
    mixed = load(mixture(tmp_path / "out", path, others, BLOCK, seed=3))
    alone = assembled(path, others, BLOCK, routes(mixed, PROMPTS[0])).eval()
    one = batch(PROMPTS[:1])
    states = mixed(**one, output_hidden_states=True).hidden_states
    expected = alone(**one, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(states, expected))
    with pytest.raises(ValueError, match="row by row"):
        mixed(**batch(PROMPTS), output_hidden_states=True)
