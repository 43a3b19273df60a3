"""Any kind of mixture from experts and prompts, in the form that fits; or the reasons why not."""

import json

import pytest
import torch
from layer_samples import batch, load, logits, routes, save
from safetensors.torch import save_file

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import MixtureError
from modelglue.mixture.compose import compose, stock_form
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import condition

TOKEN = MixtureKind("ffn", input="token")
STACK = MixtureKind("model", shared_layers=1)
PROMPTS = {
    "numbers": ["1 + 2 = 3", "17 * 4 = 68", "9 - 5 = 4", "80 / 4 = 20"],
    "words": ["the cat sat", "a dog ran home", "birds sing aloud", "fish swim there"],
}


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    root = tmp_path_factory.mktemp("experts")
    base = save(root / "base", "llama")
    return {
        name: tiny.save_variant(base, root / name, seed=i, scale=0.02)
        for i, name in enumerate(PROMPTS)
    }


@pytest.fixture(scope="module")
def gemmas(tmp_path_factory):
    root = tmp_path_factory.mktemp("gemmas")
    return {name: save(root / name, "gemma2", seed=i) for i, name in enumerate(PROMPTS)}


def config(path):
    return json.loads((path / "config.json").read_text())


def test_whole_models_become_a_bundle(tmp_path, experts):
    compose(experts, PROMPTS, tmp_path / "out", kind=MixtureKind())
    assert (tmp_path / "out" / "mixture.json").is_file()


def test_a_stock_class_is_taken_where_one_fits(tmp_path, experts):
    kind = MixtureKind("ffn", input="token", top_k=2)
    summary = compose(experts, PROMPTS, tmp_path / "out", kind=kind)
    assert config(tmp_path / "out")["model_type"] == "mixtral"
    assert summary.kind == kind
    assert summary.condition >= 1


def test_where_none_fits_the_modelling_file_goes_along(tmp_path, gemmas):
    kind = MixtureKind("ffn", input="token", top_k=2)
    compose(gemmas, PROMPTS, tmp_path / "out", kind=kind)
    assert config(tmp_path / "out")["model_type"] == "modelglue_mixture"


def test_form_and_the_reason_for_it_are_told(tmp_path, experts, gemmas):
    stock = compose(experts, PROMPTS, tmp_path / "stock", kind=TOKEN)
    assert (stock.form, stock.not_stock) == ("mixtral", None)
    other = compose(gemmas, PROMPTS, tmp_path / "other", kind=TOKEN)
    assert other.form == "modelglue_mixture"
    assert (
        "no stock mixture-of-experts class computes what gemma2 models compute" in other.not_stock
    )
    bundle = compose(experts, PROMPTS, tmp_path / "bundle")
    assert (bundle.form, bundle.not_stock) == ("bundle", None)
    told = other.to_json()
    assert (told["form"], told["not_stock"]) == (other.form, other.not_stock)


def test_an_experts_reason_against_a_stock_class_is_told(tmp_path, experts):
    biased = {**experts, "words": save(tmp_path / "biased", "llama", mlp_bias=True)}
    with pytest.raises(MixtureError, match="mlp_bias is True"):
        compose(biased, PROMPTS, tmp_path / "out", kind=TOKEN)
    reason = stock_form(biased, experts["numbers"], TOKEN)
    assert "expert 'words': mlp_bias: its feed-forward parts have biases" in reason


@pytest.mark.parametrize("kind", [TOKEN, MixtureKind("block")], ids=["stock", "own"])
def test_each_routers_condition_is_written_down(tmp_path, experts, kind):
    summary = compose(experts, PROMPTS, tmp_path / "out", kind=kind)
    told = config(tmp_path / "out")["modelglue"]["conditions"]
    assert told == list(summary.conditions)
    assert len(told) == 2
    assert max(told) == summary.condition < float("inf")
    assert summary.confusions == ()
    with Checkpoint.open(tmp_path / "out") as mixed:
        names = sorted(n for n in mixed.tensors if n.endswith(("gate.weight", "router.weight")))
        found = [condition(mixed.read(name)) for name in names]
    assert told == pytest.approx(found, rel=1e-4)
    assert "Condition of the routers' weights" in (tmp_path / "out" / "README.md").read_text()


def test_experts_with_the_same_prompts_are_named(tmp_path, experts):
    prompts = {"numbers": PROMPTS["words"], "words": PROMPTS["words"]}
    summary = compose(experts, prompts, tmp_path / "out", kind=MixtureKind("block"))
    (said,) = summary.confusions
    assert said.startswith("2 of 2 routers cannot tell numbers, words apart (condition ∞)")
    assert config(tmp_path / "out")["modelglue"]["conditions"] == [None, None]
    assert summary.to_json()["conditions"] == [None, None]


@pytest.mark.parametrize(
    ("family", "kind", "form"),
    [
        ("llama", TOKEN, "mixtral"),
        ("qwen2", TOKEN, "qwen2_moe"),
        ("granite", TOKEN, "granitemoe"),
        ("llama", MixtureKind("block"), "modelglue_mixture"),
        ("qwen2", STACK, "modelglue_mixture"),
    ],
)
def test_one_expert_at_work_is_the_dense_model_and_the_routers(tmp_path, family, kind, form):
    dense = tiny.save_model(tmp_path / "d", model_type=family, num_hidden_layers=2)
    summary = compose(dict.fromkeys(PROMPTS, dense), PROMPTS, tmp_path / "out", kind=kind)
    assert summary.form == form
    with Checkpoint.open(dense) as one, Checkpoint.open(tmp_path / "out") as mixed:
        assert summary.stored == mixed.parameters > one.parameters
        # A shared expert, which Qwen2-MoE must have, is always at work.
        words = ("router.", ".gate.weight", "shared_expert")
        new = [t.numel for name, t in mixed.tensors.items() if any(w in name for w in words)]
        assert summary.active == one.parameters + sum(new)


@pytest.mark.parametrize(
    "kind",
    [
        MixtureKind("block"),
        MixtureKind("block", "mlp", shared_layers=1),
        MixtureKind("ffn", "linear", "sample"),
        MixtureKind("model", shared_layers=1),
    ],
    ids=lambda kind: f"{kind.short}-{kind.shared_layers}",
)
def test_prompts_go_to_the_expert_that_they_were_given_for(tmp_path, experts, kind):
    summary = compose(experts, PROMPTS, tmp_path / "out", kind=kind, reasons={"words": "reads"})
    assert summary.experts == tuple(PROMPTS)
    mixed, tokenizer = load(tmp_path / "out"), tiny.tokenizer()
    for expert, texts in enumerate(PROMPTS.values()):
        for text in texts:
            chosen = routes(mixed, tokenizer(text)["input_ids"])
            assert chosen[0] == expert
    assert config(tmp_path / "out")["modelglue"]["reasons"] == {"words": "reads"}


def test_the_dense_model_gives_what_no_expert_has(tmp_path, experts):
    dense = save(tmp_path / "dense", "llama", seed=9)
    same = dict.fromkeys(PROMPTS, dense)
    summary = compose({**same}, PROMPTS, tmp_path / "out", kind=MixtureKind("block"), dense=dense)
    assert summary.encoder == "the dense model"
    inputs = batch([[5, 6, 7, 8]])
    assert torch.allclose(
        logits(load(tmp_path / "out"), inputs), logits(load(dense), inputs), atol=1e-5
    )


def test_models_that_do_not_fit_are_refused_before_any_work(tmp_path, experts, monkeypatch):
    wide = save(tmp_path / "wide", "llama", hidden_size=48)
    monkeypatch.setattr(
        "modelglue.mixture.compose.initialise", lambda *_, **__: pytest.fail("was made")
    )
    for kind in (MixtureKind("block"), MixtureKind("ffn", input="token")):
        with pytest.raises(MixtureError, match="hidden_size is 48"):
            compose({**experts, "words": wide}, PROMPTS, tmp_path / "out", kind=kind)
    assert not (tmp_path / "out").exists()


def test_every_expert_needs_prompts(tmp_path, experts):
    with pytest.raises(MixtureError, match="none for words"):
        compose(
            experts,
            {"numbers": PROMPTS["numbers"]},
            tmp_path / "out",
            kind=MixtureKind("block"),
        )


def test_an_adapter_may_be_an_expert(tmp_path, experts):
    adapter, module = tmp_path / "adapter", "model.layers.1.mlp.up_proj"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    shapes = {"lora_A": (2, 32), "lora_B": (64, 2)}
    save_file(
        {f"base_model.model.{module}.{n}.weight": torch.ones(*s) for n, s in shapes.items()},
        adapter / "adapter_model.safetensors",
    )
    given = {"numbers": experts["numbers"], "words": f"{experts['words']}+{adapter}"}
    compose(given, PROMPTS, tmp_path / "out", kind=MixtureKind("block"))
    with Checkpoint.open(tmp_path / "out") as mixed, Checkpoint.open(experts["words"]) as base:
        found = mixed.read("dense.model.layers.1.experts.1.mlp.up_proj.weight")
        before = base.read(f"{module}.weight")
    assert torch.allclose(found, before + 4, atol=1e-6)  # B A = 2, α / r = 2
