"""What is written: bytes of the models that they are taken from, or nothing and every reason."""

import json
from dataclasses import replace

import pytest
import torch
from layer_samples import (
    FAMILIES,
    LAYERS,
    PROMPTS,
    WIDTH,
    batch,
    load,
    logits,
    mixture,
    routers,
    save,
)

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import MixtureError, OutputExists
from modelglue.mixture.compose import compose
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.surgery import check_layers, write_layers

FFN = MixtureKind("ffn", "mlp", "token", 2)
BLOCK = MixtureKind("block", "linear", "sample", 1)
HYBRID = MixtureKind("block", "linear", "sample", 1, 1)
STACK = MixtureKind("model", "linear", "sample", 1, 1)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    made = {}

    def get(family, seed=0, **more):
        key = family, seed, tuple(more)
        if key not in made:
            made[key] = save(tmp_path_factory.mktemp(family) / str(seed), family, seed=seed, **more)
        return made[key]

    return get


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, BLOCK) for family in FAMILIES), ("gemma2", FFN), ("qwen2", STACK)],
)
def test_every_tensor_is_found_when_it_is_loaded(tmp_path, models, family, kind):
    experts = [models(family, seed) for seed in (1, 2)]
    out = mixture(tmp_path / "out", models(family), experts, kind)
    _, info = load_told(out)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


def load_told(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)


@pytest.mark.parametrize("kind", [FFN, HYBRID, STACK], ids=lambda kind: kind.short)
def test_bytes_are_those_of_the_model_that_a_part_is_taken_from(tmp_path, models, kind):
    dense, experts = models("llama"), [models("llama", seed) for seed in (1, 2)]
    out = mixture(tmp_path / "out", dense, experts, kind)
    sources = [Checkpoint.open(path) for path in experts]
    base, mixed = Checkpoint.open(dense), Checkpoint.open(out)
    taken = 0
    for name in mixed.tensors:
        if ".router." in name:
            continue
        plain = name.removeprefix("dense.")
        before, is_expert, after = plain.partition("experts.")
        if is_expert:
            number, _, rest = after.partition(".")
            source, stored = sources[int(number)], before + rest
            taken += 1
        else:
            source, stored = base, plain
        assert torch.equal(mixed.read(name), source.read(stored)), name
    assert taken >= 2 * 3 * (LAYERS - kind.shared_layers)


def test_it_says_what_it_is(tmp_path, models):
    dense, expert = models("qwen2"), models("qwen2", 1)
    kind = MixtureKind("ffn", "mlp", "sample", 2, 1)
    out = write_layers(
        tmp_path / "out",
        {"maths": dense, "code": expert},
        dense,
        routers(kind, 2),
        kind=kind,
        reasons={"maths": "leads at sums"},
    )
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "modelglue_mixture"
    assert config["auto_map"]["AutoModelForCausalLM"].startswith("modeling_modelglue.")
    assert config["text_config"]["model_type"] == "qwen2"
    told = config["modelglue"]
    assert told["format"] == 1
    assert told["kind"] == kind.to_mapping()
    assert told["experts"] == ["maths", "code"]
    assert told["reasons"] == {"maths": "leads at sums"}
    assert told["router_size"] == 6
    for file in ("modeling_modelglue.py", "tokenizer.json", "generation_config.json", "README.md"):
        assert (out / file).is_file(), file
    assert "leads at sums" in (out / "README.md").read_text()


def test_an_expert_in_another_precision_is_cast_to_the_dense_models(tmp_path, models):
    half = models("llama", 1, dtype=torch.bfloat16)
    out = mixture(tmp_path / "out", models("llama"), [half, models("llama")], BLOCK)
    found = Checkpoint.open(out).read("dense.model.layers.1.experts.0.mlp.up_proj.weight")
    stored = Checkpoint.open(half).read("model.layers.1.mlp.up_proj.weight")
    assert found.dtype == torch.float32
    assert stored.dtype == torch.bfloat16
    assert torch.equal(found, stored.float())


def test_it_loads_in_the_dense_models_precision_whatever_its_settings_leave_out(tmp_path, models):
    dense = save(tmp_path / "dense", "llama", dtype=torch.bfloat16)
    config = json.loads((dense / "config.json").read_text())
    del config["dtype"]
    (dense / "config.json").write_text(json.dumps(config))
    mixed = load(mixture(tmp_path / "out", dense, [dense, dense], BLOCK), dtype="auto")
    assert mixed.get_input_embeddings().weight.dtype == torch.bfloat16


def test_heads_are_kept_apart_where_they_differ_alone(tmp_path, models):
    dense = models("qwen2")
    same = mixture(tmp_path / "same", dense, [dense, dense], STACK)
    names = Checkpoint.open(same).tensors
    assert not any("lm_head" in name for name in names)
    unlike = mixture(tmp_path / "unlike", dense, [dense, models("qwen2", 1)], STACK)
    with Checkpoint.open(unlike) as found, Checkpoint.open(models("qwen2", 1)) as expert:
        head = found.read("dense.lm_head.experts.1.weight")
        assert torch.equal(head, expert.read("model.embed_tokens.weight"))


def test_a_head_that_the_settings_call_tied_but_that_differs_counts(tmp_path, models):
    dense = save(tmp_path / "dense", "llama")
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    mixed = load(mixture(tmp_path / "out", dense, [dense, dense], BLOCK))
    head = Checkpoint.open(dense).read("lm_head.weight")
    assert torch.equal(mixed.get_output_embeddings().weight, head)


def refused(tmp_path, dense, experts, kind, given=None):
    with pytest.raises(MixtureError) as caught:
        write_layers(
            tmp_path / "out", experts, dense, given or routers(kind, len(experts)), kind=kind
        )
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_all_that_is_wrong_is_told_at_once_with_a_way_out(tmp_path, models):
    wide = save(tmp_path / "wide", "llama", hidden_size=48)
    deep = save(tmp_path / "deep", "llama", num_hidden_layers=3)
    text = refused(tmp_path, models("llama"), {"wide": wide, "deep": deep}, BLOCK)
    assert "'wide': hidden_size is 48, and the dense model's 32" in text
    assert "'deep': num_hidden_layers is 3, and the dense model's 2" in text
    assert text.count("shared_layers: 0") == 2


def test_other_tokens_are_refused(tmp_path, models):
    other = save(tmp_path / "other", "llama", vocab_size=300)
    known = tiny.tokenizer()
    known.add_tokens(["hello"])
    known.save_pretrained(other)
    text = refused(tmp_path, models("llama"), {"a": other, "b": models("llama")}, BLOCK)
    assert "its tokens are not the dense model's" in text
    assert "'hello'" in text


@pytest.mark.parametrize(
    ("kind", "way_out"), [(FFN, "B-L-S"), (STACK, "shared_layers: 0")], ids=["ffn", "model"]
)
def test_other_architectures_are_refused_where_layers_alone_may_differ(
    tmp_path, models, kind, way_out
):
    experts = {"a": models("qwen3"), "b": models("llama")}
    text = refused(tmp_path, models("llama"), experts, kind)
    assert "'a': it is a qwen3, and the dense model a llama" in text
    assert way_out in text


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (MixtureKind("model"), "in a bundle"),
        (MixtureKind("model", top_k=2, shared_layers=1), "use top_k: 1, or shared_layers: 0"),
        (MixtureKind("block", shared_layers=2), "use at most 1"),
        (MixtureKind("block", top_k=2), "use top_k: 1, or level: ffn"),
        (MixtureKind("ffn", top_k=3), "use at most 2"),
    ],
)
def test_kinds_that_cannot_be_are_refused_with_the_nearest_that_can(tmp_path, models, kind, reason):
    experts = {"a": models("llama"), "b": models("llama", 1)}
    assert reason in refused(tmp_path, models("llama"), experts, kind, [])


@pytest.mark.parametrize("kind", [MixtureKind("ffn", input="sample"), BLOCK], ids=str)
def test_layers_that_keep_other_states_route_no_samples(tmp_path, kind):
    convolutions = {
        "model_type": "lfm2",
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
    }
    dense = tiny.save_model(tmp_path / "dense", num_hidden_layers=2, **convolutions)
    text = refused(tmp_path, dense, {"a": dense, "b": dense}, kind)
    assert text.count("remember more than keys and values") == 3
    assert "shared_layers: 0" in text
    token = MixtureKind("ffn", input="token")
    mixed = load(mixture(tmp_path / "token", dense, [dense, dense], token))
    inputs = batch(PROMPTS)
    assert (logits(mixed, inputs) - logits(load(dense), inputs)).abs().max() < 1e-5


SEES = {
    "text_config": {**tiny.SIZES, **FAMILIES["gemma3_text"], "num_hidden_layers": LAYERS},
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}


@pytest.mark.parametrize(
    "kind", [FFN, BLOCK, STACK, MixtureKind("ffn", input="token")], ids=lambda kind: kind.short
)
def test_of_a_model_that_sees_its_language_model_is_mixed(tmp_path, kind):
    sees = [
        tiny.save_model(tmp_path / str(seed), seed=seed, model_type="gemma3", **SEES)
        for seed in (0, 1)
    ]
    inputs = batch(PROMPTS)
    whole = load(mixture(tmp_path / "same", sees[0], [sees[0]] * 2, kind))
    assert whole.config.text_config.model_type == "gemma3_text"
    assert (logits(whole, inputs) - logits(load(sees[0]), inputs)).abs().max() < 1e-5
    prompts = {"a": ["1 + 2", "3 - 1"], "b": ["the cat", "a dog"]}
    experts = dict(zip("ab", sees))
    compose(experts, prompts, tmp_path / "out", kind=replace(kind, top_k=1))
    _, info = load_told(tmp_path / "out")
    assert not info["missing_keys"] | info["unexpected_keys"]


def test_a_model_without_a_language_model_of_its_own_is_refused(tmp_path, models):
    path = save(tmp_path / "odd", "llama")
    config = json.loads((path / "config.json").read_text())
    config |= {"text_config": {"model_type": "qwen2_5_vl_text"}}
    (path / "config.json").write_text(json.dumps(config))
    text = refused(tmp_path, models("llama"), {"a": path, "b": models("llama")}, BLOCK)
    assert "transformers knows no language model of type 'qwen2_5_vl_text'" in text
    assert "shared_layers: 0" in text


def test_routers_that_do_not_fit_are_refused(tmp_path, models):
    experts = {"a": models("llama"), "b": models("llama", 1)}
    given = [LinearRouter(torch.zeros(3, WIDTH), torch.zeros(3))]
    text = refused(tmp_path, models("llama"), experts, BLOCK, given)
    assert "there are 1 routers, and 2 are needed" in text
    assert "3 experts" in text


def test_what_lacks_a_tensor_is_named(tmp_path, models):
    from safetensors.torch import load_file, save_file

    torn = save(tmp_path / "torn", "llama", seed=4)
    tensors = load_file(torn / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, torn / "model.safetensors")
    text = refused(tmp_path, models("llama"), {"a": torn, "b": models("llama")}, BLOCK)
    assert "expert 'torn' lacks model.layers.1.mlp.up_proj.weight" in text
    with pytest.raises(MixtureError, match="lacks"):
        check_layers({"a": torn, "b": models("llama")}, models("llama"), kind=BLOCK)


def test_a_place_that_is_taken_is_refused(tmp_path, models):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        mixture(tmp_path / "out", models("llama"), [models("llama")] * 2, BLOCK)
