"""How such a checkpoint is saved, loaded, spread over devices and used by others."""

import json
import os
import subprocess
import sys

import pytest
import torch
from layer_samples import (
    FAMILIES,
    PROMPTS,
    assembled,
    batch,
    load,
    logits,
    mixture,
    routers,
    routes,
    save,
    written,
)
from transformers import DynamicCache

import tiny
from modelglue.errors import MixtureError
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.modeling_modelglue import (
    ModelglueMixtureConfig,
    ModelglueMixtureForCausalLM,
    RoutedCacheLayer,
)
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.surgery import check_layers, write_layers

FFN = MixtureKind("ffn", "linear", "token", 2)
FFN_SAMPLE = MixtureKind("ffn", "mlp", "sample", 1)
BLOCK = MixtureKind("block", "linear", "sample", 1)
STACK = MixtureKind("model", "linear", "sample", 1, 1)
# Different architectures and windows, the same width and depth.
UNLIKE = ["mistral", "qwen3", "gemma2"]

PLAIN = """
import sys
sys.modules["modelglue"] = None  # whoever imports it fails
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)("a")["input_ids"]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
ids = torch.tensor(json.loads(sys.argv[2]))
print(json.dumps(model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0,
      eos_token_id=None)[0].tolist()))
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    made = {}

    def get(family, seed):
        if (family, seed) not in made:
            made[family, seed] = save(
                tmp_path_factory.mktemp(family) / str(seed), family, seed=seed
            )
        return made[family, seed]

    return get


@pytest.fixture
def mixed(tmp_path, models):
    def make(family, kind):
        others = [models(family, seed) for seed in (1, 2, 3)]
        return mixture(tmp_path / "out", models(family, 0), others, kind, seed=3)

    return make


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(
            pytest.param(f, BLOCK, marks=() if f in ("qwen2", "gemma3_text") else pytest.mark.slow)
            for f in FAMILIES
        ),
        ("qwen2", STACK),
        ("llama", FFN_SAMPLE),
    ],
)
def test_saved_again_in_shards_it_is_the_same(tmp_path, mixed, family, kind):
    model = load(mixed(family, kind))
    model.save_pretrained(tmp_path / "again", max_shard_size="40KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    again = load(tmp_path / "again")
    inputs = batch(PROMPTS)
    assert torch.equal(logits(model, inputs), logits(again, inputs))
    assert again.config.to_dict() | {"_name_or_path": 0} == model.config.to_dict() | {
        "_name_or_path": 0
    }
    assert (tmp_path / "again" / "modeling_modelglue.py").is_file()


def test_transformers_alone_loads_it_with_the_code_that_it_carries(tmp_path, mixed):
    path = mixed("mistral", BLOCK)
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(path), json.dumps(PROMPTS[:1])],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = PROMPTS[0] + written(load(path), batch(PROMPTS[:1]), max_new_tokens=6)[0]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_in_half_precision_routers_stay_exact(mixed):
    model = load(mixed("llama", BLOCK), dtype=torch.bfloat16)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert {kind for name, kind in kinds.items() if ".router." in name} == {torch.float32}
    assert kinds["dense.model.layers.0.experts.1.mlp.up_proj.weight"] == torch.bfloat16
    model.to(torch.bfloat16)
    assert len(written(model, batch(PROMPTS))) == len(PROMPTS)


@pytest.mark.parametrize("kind", [BLOCK, FFN_SAMPLE], ids=["block", "ffn"])
def test_a_device_map_may_part_experts(tmp_path, mixed, kind):
    path = mixed("llama", kind)
    plain = load(path)
    places = {"": "cpu"}
    if kind.level == "block":
        names = [name for name, _ in plain.named_children()]
        assert "dense" in names
        places = {
            "dense.model.embed_tokens": "cpu",
            "dense.model.norm": "cpu",
            "dense.model.rotary_emb": "cpu",
            "dense.lm_head": "cpu",
            "dense.model.layers.0": "cpu",
            **{f"dense.model.layers.1.experts.{i}": "cpu" for i in (0, 2)},
            "dense.model.layers.1.experts.1": "disk",
            "dense.model.layers.1.router": "cpu",
        }
    spread = load(path, device_map=places, offload_folder=str(tmp_path / "disk"))
    inputs = batch(PROMPTS)
    assert torch.allclose(logits(plain, inputs), logits(spread, inputs), atol=1e-6)
    assert written(plain, inputs) == written(spread, inputs)


@pytest.mark.parametrize("kind", [BLOCK, FFN_SAMPLE], ids=["block", "ffn"])
def test_other_ways_to_generate_say_the_same(mixed, kind):
    model = load(mixed("mistral", kind))
    inputs, one = batch(PROMPTS), batch(PROMPTS[:1])
    expected = written(model, inputs)
    assert written(model, one, prompt_lookup_num_tokens=3) == expected[:1]
    states = model.get_input_embeddings()(inputs["input_ids"])
    mask = inputs["attention_mask"]
    found = model.generate(
        inputs_embeds=states,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert found.tolist() == expected
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        written(model, inputs, prefill_chunk_size=3)


def test_an_expert_keeps_keys_and_values_of_its_own_rows_alone(mixed):
    model = load(mixed("llama", BLOCK))
    inputs = batch(PROMPTS)
    cache = model(**inputs, use_cache=True).past_key_values
    for index, layer in enumerate(cache.layers):
        assert isinstance(layer, RoutedCacheLayer)
        counts = torch.tensor([routes(model, prompt)[index] for prompt in PROMPTS]).bincount()
        rows = {expert: len(part.keys) for expert, part in layer.parts.items()}
        assert rows == {i: n for i, n in enumerate(counts.tolist()) if n}


def test_a_batch_on_one_route_is_not_copied(mixed, monkeypatch):
    model = load(mixed("llama", BLOCK))
    seen = []
    layer = model.dense.model.layers[1]
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for expert in layer.experts:
        expert.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**batch([PROMPTS[0]] * 3))
    assert len(seen) == 2
    assert seen[0] is seen[1]


@pytest.mark.parametrize("made", ["by config", "without config", "static"])
def test_any_cache_will_do(mixed, made):
    model = load(mixed("llama", BLOCK))
    inputs = batch(PROMPTS)
    expected = written(model, inputs)
    if made == "static":
        assert written(model, inputs, cache_implementation="static") == expected
        return
    cache = DynamicCache(config=model.config) if made == "by config" else DynamicCache()
    assert written(model, inputs, past_key_values=cache) == expected


@pytest.mark.parametrize("kind", [FFN, FFN_SAMPLE, BLOCK, STACK], ids=lambda kind: kind.short)
def test_our_own_generation_says_the_same(mixed, kind):
    path = mixed("llama", kind)
    model = HuggingFaceModel.load(path)
    texts = ["one plus one", "a", "The cat sat on the mat, and then", "zzz"]
    answers = model.generate(texts, max_new_tokens=6)
    alone = [model.generate([text], max_new_tokens=6)[0] for text in texts]
    assert answers == alone
    ids = torch.tensor([model.tokenizer(texts[0])["input_ids"]])
    tokens = model.module.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = model.tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
    assert answers[0] == expected


LONGROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.5, 1.1, 1.2],
        "long_factor": [8.0, 3.0, 11.0, 6.0],
    },
}


def test_where_positions_turn_in_mid_answer_the_prompt_alone_decides_again(tmp_path):
    """The row is read anew beyond 32 tokens, and what was answered is no part of the prompt."""
    paths = [save(tmp_path / str(seed), "phi3", seed=seed, **LONGROPE) for seed in range(4)]
    model = HuggingFaceModel.load(mixture(tmp_path / "out", paths[0], paths[1:], BLOCK, seed=6))
    for text in ("0123456789 is ten digits", "hello world", "The cat"):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        told = model.module.generate(ids, max_length=40, do_sample=False, pad_token_id=0)
        assert told.shape[1] > 33
        expected = model.tokenizer.decode(told[0, ids.shape[1] :], skip_special_tokens=True)
        assert model.generate([text], max_new_tokens=40 - ids.shape[1]) == [expected]


def test_likelihoods_are_routed_on_the_context(mixed, models):
    path, others = mixed("llama", BLOCK), [models("llama", seed) for seed in (1, 2, 3)]
    model = HuggingFaceModel.load(path)
    contexts = ["one plus one is", "The cat sat on", "zzz and so on, until"]
    choices = [" two", " a mat that was there before", " z"]
    found = model.loglikelihoods(contexts, [choices] * 3)
    for context, row in zip(contexts, found):
        route = routes(model.module, model.tokenizer(context)["input_ids"])
        module = assembled(models("llama", 0), others, BLOCK, route)
        alone = HuggingFaceModel(module, model.tokenizer)
        (expected,) = alone.loglikelihoods([context], [choices])
        assert [a.total for a in row] == pytest.approx([b.total for b in expected], abs=1e-4)


def test_parameters_at_work_are_told(mixed):
    model = HuggingFaceModel.load(mixed("llama", BLOCK))
    parts = [p.numel() for n, p in model.module.named_parameters() if ".experts." in n]
    idle = model.parameters_stored - model.parameters_active
    assert idle == pytest.approx(sum(parts) * 2 / 3, rel=1e-3)  # each tensor is rounded


def test_layers_that_know_learned_positions_alone_are_refused_beside_others(tmp_path, models):
    experts = {"a": models("opt", 1), "b": models("llama", 1)}
    with pytest.raises(MixtureError, match=r"embeds more than tokens .*shared_layers: 0"):
        check_layers(experts, models("llama", 0), kind=BLOCK)


@pytest.fixture
def unlike(tmp_path, models):
    """A mixture of layers of three architectures in a Llama, routed as asked."""

    def make(chosen=None):
        dense, others = models("llama", 0), {name: models(name, 5) for name in UNLIKE}
        given = routers(BLOCK, 3, seed=4)
        if chosen is not None:
            bias = torch.nn.functional.one_hot(torch.tensor(chosen), 3).float()
            given = [LinearRouter(torch.zeros(3, 32), bias)] * 2
        return load(write_layers(tmp_path / "out", others, dense, given, kind=BLOCK))

    return make


def stack_of(models, name):
    """An expert's own model between the dense model's embedding and head."""
    model, dense = load(models(name, 5)), load(models("llama", 0))
    model.model.embed_tokens = dense.model.embed_tokens
    model.model.norm, model.lm_head = dense.model.norm, dense.lm_head
    model.config.final_logit_softcapping = None
    return model


@pytest.mark.parametrize("chosen", range(3))
def test_layers_of_another_architecture_see_what_is_theirs(unlike, models, chosen):
    mixed, alone = unlike(chosen), stack_of(models, UNLIKE[chosen])
    inputs = batch(PROMPTS)
    assert (logits(mixed, inputs) - logits(alone, inputs)).abs().max() < 1e-5
    expected = written(alone, inputs)
    assert written(mixed, inputs) == expected
    assert written(mixed, inputs, use_cache=False) == expected


def test_rows_may_go_through_different_architectures(unlike):
    mixed = unlike()
    chosen = [routes(mixed, prompt) for prompt in PROMPTS]
    assert len({expert for route in chosen for expert in route}) > 1
    inputs = batch(PROMPTS)
    alone = [written(mixed, batch([prompt]), max_new_tokens=12)[0] for prompt in PROMPTS]
    assert written(mixed, inputs, max_new_tokens=12) == alone
    assert written(mixed, inputs, max_new_tokens=12, use_cache=False) == alone


def test_our_own_runner_reads_several_architectures(unlike):
    module = unlike()
    model = HuggingFaceModel(module, tiny.tokenizer())
    texts = ["one plus one is", "The cat sat on the mat, and then", "zzz"]
    answers = model.generate(texts, max_new_tokens=12)
    for text, answer in zip(texts, answers):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        tokens = module.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        kept = tokens[0, ids.shape[1] :]
        assert answer == model.tokenizer.decode(kept, skip_special_tokens=True)
    (found,) = model.loglikelihoods(texts[:1], [[" two", " three and more"]])
    alone = [model.loglikelihoods(texts[:1], [[one]])[0][0] for one in (" two", " three and more")]
    assert [a.total for a in found] == pytest.approx([b.total for b in alone], abs=1e-4)


def test_a_static_cache_is_refused_beside_other_architectures_whoever_answers(unlike):
    model = unlike()
    for prompt in PROMPTS[:2]:
        with pytest.raises(ValueError, match="what is not theirs; leave cache_implementation out"):
            written(model, batch([prompt]), cache_implementation="static")


def test_a_mixture_of_architectures_is_saved_and_loaded(tmp_path, unlike):
    model = unlike()
    model.save_pretrained(tmp_path / "again")
    inputs = batch(PROMPTS)
    assert torch.equal(logits(model, inputs), logits(load(tmp_path / "again"), inputs))


def test_rows_keep_to_themselves_where_layers_take_arguments_by_position():
    text = {"model_type": "gpt2", **tiny.SIZES, "num_hidden_layers": 2}
    told = {"kind": BLOCK.to_mapping(), "experts": ["a", "b", "c"]}
    torch.manual_seed(0)
    mixed = ModelglueMixtureForCausalLM(ModelglueMixtureConfig(text, told)).eval()
    with torch.no_grad():
        for name, parameter in mixed.named_parameters():
            parameter.normal_(0, 9 if "router.weight" in name else 0.15)
    chosen = [routes(mixed, prompt) for prompt in PROMPTS]
    assert len(set(map(tuple, chosen))) > 1, "all rows of the sample go one way"
    inputs = batch(PROMPTS)
    alone = torch.cat([logits(mixed, batch([prompt])) for prompt in PROMPTS])
    assert (logits(mixed, inputs) - alone).abs().max() < 1e-5
    expected = [written(mixed, batch([prompt]))[0] for prompt in PROMPTS]
    assert written(mixed, inputs) == expected
    assert written(mixed, inputs, use_cache=False) == expected


@pytest.mark.parametrize("kind", [FFN_SAMPLE, BLOCK, STACK], ids=lambda kind: kind.short)
@pytest.mark.parametrize(("first", "then"), [("eager", "sdpa"), ("sdpa", "eager")])
def test_another_attention_set_after_loading_says_the_same(mixed, kind, first, then):
    model = load(mixed("llama", kind), attn_implementation=first)
    inputs = batch(PROMPTS)
    expected, told = logits(model, inputs), written(model, inputs)
    model.set_attn_implementation(then)
    assert (logits(model, inputs) - expected).abs().max() < 1e-5
    assert written(model, inputs) == told


def test_another_attention_reaches_layers_of_other_architectures(unlike):
    model = unlike()
    inputs = batch(PROMPTS)
    expected = logits(model, inputs)
    model.set_attn_implementation("eager")
    assert (logits(model, inputs) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", [FFN_SAMPLE, BLOCK], ids=lambda kind: kind.short)
def test_what_another_model_read_is_refused(mixed, models, kind):
    model, other = load(mixed("llama", kind)), load(models("llama", 0))
    ids = torch.tensor(PROMPTS[:1])
    read = other(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="filled by another model"):
        model(ids, past_key_values=read)
