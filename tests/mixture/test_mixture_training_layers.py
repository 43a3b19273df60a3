"""Routers inside of checkpoints, trained by language modelling with everything else untouched."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from mixture_samples import PROMPTS
from safetensors.torch import load_file
from stock_samples import BY_NAME
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from modelglue.errors import InputError, MixtureError, OutputExists
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.compose import compose
from modelglue.mixture.layer_features import LayerReader
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import condition
from modelglue.mixture.stock_formats import FORMATS
from modelglue.mixture.training_forced import forced_losses
from modelglue.mixture.training_layers import LayerSettings, router_parameters, train_layers
from modelglue.mixture.training_rows import Row, batch_of, losses, rows_of
from modelglue.mixture.training_samples import Sample
from modelglue.mixture.training_scales import calm

KINDS = {
    "B-L-S": MixtureKind("block"),
    "B-M-S": MixtureKind("block", "mlp"),
    "F-L-T": MixtureKind("ffn", input="token", shared_layers=1),
    "F-L-S": MixtureKind("ffn", input="sample"),
    "F-M-T top 2": MixtureKind("ffn", "mlp", "token", top_k=2),
    "M-L-S": MixtureKind("model", shared_layers=2),
}
QUICK = LayerSettings(steps=12, rows=4, length=32, rate=0.02, save_every=4)


@pytest.fixture(scope="module")
def specialists(tmp_path_factory) -> dict[str, Path]:
    """Three models of one family, their feed-forward parts trained on texts of their own sort."""
    root = tmp_path_factory.mktemp("specialists")
    base = tiny.save_model(root / "base", seed=0, num_hidden_layers=3)
    return {name: trained_on(PROMPTS[name], base, root / name) for name in PROMPTS}


def trained_on(texts, base, path):
    model = AutoModelForCausalLM.from_pretrained(base)
    ids = [tiny.tokenizer()(text).input_ids for text in texts]
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    labels = tokens.masked_fill(tokens == 0, -100)
    own = [parameter for name, parameter in model.named_parameters() if ".mlp." in name]
    optimizer = torch.optim.AdamW(own, lr=2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(tokens, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def mixture(specialists, out, kind):
    """One whose routers were drawn at random."""
    compose(specialists, PROMPTS, out, kind=kind, initialisation="random", seed=1)
    return out


def samples():
    return [Sample(text) for texts in zip(*PROMPTS.values(), strict=True) for text in texts]


def tensors_of(folder):
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("B-L-S", "F-L-T", "M-L-S") else pytest.param(name, marks=pytest.mark.slow)
        for name in KINDS
    ],
)
def test_training_lowers_the_loss_and_changes_routers_alone(tmp_path, specialists, name):
    given = mixture(specialists, tmp_path / "given", KINDS[name])
    before = {path: path.read_bytes() for path in given.iterdir()}
    told = []
    settings = LayerSettings(
        steps=60, rows=8, length=32, rate=0.2, balance=0.0, stop=0.2, report=0.2
    )
    done = train_layers(
        given, tmp_path / "out", samples(), settings=settings, progress=lambda *at: told.append(at)
    )
    assert done.kept
    assert done.report.after.mean < done.report.before.mean
    assert told[-1:] == ([] if KINDS[name].level == "model" else [(60, 60)])
    assert {path: path.read_bytes() for path in given.iterdir()} == before
    old, new = tensors_of(given), tensors_of(tmp_path / "out")
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(".router." in name or name.endswith("gate.weight") for name in changed)
    for path, content in before.items():
        if path.suffix != ".safetensors" and path.name != "config.json":
            assert (tmp_path / "out" / path.name).read_bytes() == content
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["modelglue"]["training"]["gain"]["mean"] > 0
    linear = sorted(name for name in new if name.endswith((".router.weight", ".gate.weight")))
    told = config["modelglue"]["conditions"]
    assert len(told) == (1 if KINDS[name].level == "model" else 3 - KINDS[name].shared_layers)
    if linear:
        assert told == pytest.approx([condition(new[router]) for router in linear], rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "out"]
    # what was reported is what is read again
    again = HuggingFaceModel.load(tmp_path / "out")
    rows = list(rows_of(samples(), again.encoder, 32))
    first = HuggingFaceModel.load(given)
    assert losses(again.module, rows, 8).sum() < losses(first.module, rows, 8).sum()


def test_rows_know_the_text_that_they_are_of(specialists):
    encoder = HuggingFaceModel.load(specialists["words"]).encoder
    given = [
        Sample("a long text of words"),
        Sample("x", "why"),
        Sample("short"),
        Sample("y", "why"),
    ]
    assert [row.document for row in rows_of(given, encoder, 12)] == [0, 0, 1, 2, 1]


def test_the_gradient_reaches_every_router_at_top_1(tmp_path, specialists):
    for name in ("B-L-S", "F-L-S", "M-L-S"):
        given = mixture(specialists, tmp_path / name, KINDS[name])
        module = HuggingFaceModel.load(given).module.train()
        rows = list(rows_of(samples()[:6], HuggingFaceModel.load(given).encoder, 32))
        calm(module, router_parameters(module), rows)
        module(**batch_of(rows, routing_mask=True)).loss.backward()
        for parameter in router_parameters(module).values():
            assert parameter.grad is not None
            assert float(parameter.grad.abs().max()) > 1e-7


def test_a_stock_mixture_with_one_expert_a_token_learns_with_two_at_work(tmp_path, specialists):
    given = mixture(specialists, tmp_path / "given", MixtureKind("ffn", input="token"))
    config = AutoConfig.from_pretrained(given)
    assert config.model_type == "mixtral"
    settings = LayerSettings(
        steps=40, rows=8, length=32, rate=0.3, balance=0.0, stop=0.2, report=0.2
    )
    done = train_layers(given, tmp_path / "out", samples(), settings=settings)
    assert done.routers == 3
    assert AutoConfig.from_pretrained(tmp_path / "out").num_experts_per_tok == 1
    old, new = tensors_of(given), tensors_of(tmp_path / "out")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == (
        {name for name in old if name.endswith(".gate.weight")} if done.kept else set()
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "granite", "olmo2", "llama-hybrid"])
def test_routers_of_every_stock_class_can_be_trained(tmp_path, name):
    case = BY_NAME[name]
    experts = {f"e{seed}": case.save(tmp_path / str(seed), seed=seed) for seed in (1, 2)}
    prompts = dict(zip(experts, PROMPTS.values()))
    given = tmp_path / "given"
    compose(experts, prompts, given, kind=case.kind(), initialisation="random", seed=1)
    assert AutoConfig.from_pretrained(given).model_type == case.target
    settings = LayerSettings(steps=1, rows=4, length=16)
    done = train_layers(given, tmp_path / "out", samples()[:9], settings=settings)
    old, new = tensors_of(given), tensors_of(tmp_path / "out")
    routers = {key for key in old if key.endswith("." + FORMATS[case.target].router)}
    assert done.routers == len(routers) == 3 - case.shared_layers
    assert {key for key in old if not torch.equal(old[key], new[key])} <= routers


def test_calming_leaves_routes_as_they_are_and_makes_steps_alike(tmp_path, specialists):
    given = mixture(specialists, tmp_path / "given", KINDS["B-M-S"])
    loaded = HuggingFaceModel.load(given)
    module, routers = loaded.module, router_parameters(loaded.module)
    with torch.no_grad():
        for name, parameter in routers.items():
            if ".2." in name:
                parameter.mul_(1e4)
    rows = list(rows_of(samples(), loaded.encoder, 32))

    def routes():
        batch = batch_of(rows, routing_mask=True)
        del batch["labels"]
        with torch.no_grad():
            told = module(**batch, use_cache=False, output_router_logits=True).router_logits
        return torch.stack(told)

    before = routes()
    rates = calm(module, routers, rows)
    after = routes()
    assert torch.equal(before.argmax(dim=-1), after.argmax(dim=-1))
    top = after[:, :32].topk(2, dim=-1).values
    assert (top[..., 0] - top[..., 1]).median(dim=1).values.tolist() == pytest.approx(
        [2] * 3, rel=0.2
    )
    assert rates.keys() == routers.keys()
    # The states of a tiny model are small, so the steps on them are large.
    first = min(rates[name] for name in rates if name.endswith(".0.weight"))
    assert first > rates[next(name for name in rates if name.endswith(".0.bias"))]


class Killed(BaseException):
    """What a signal does."""


def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path, specialists):
    given = mixture(specialists, tmp_path / "given", KINDS["B-L-S"])
    train_layers(given, tmp_path / "whole", samples(), settings=QUICK)

    def kill(step, _):
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        train_layers(given, tmp_path / "out", samples(), settings=QUICK, progress=kill)
    assert not (tmp_path / "out").exists()
    work = tmp_path / ".out.training"
    # A checkpoint that was torn while it was written is passed over.
    shutil.copytree(work / "checkpoint-4", work / "checkpoint-8")
    (work / "checkpoint-8" / "trainer_state.json").unlink()
    done = train_layers(given, tmp_path / "out", samples(), settings=QUICK)
    assert done.resumed == 4
    whole, out = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "out")
    assert all(torch.equal(whole[name], out[name]) for name in whole)
    assert not work.exists()


def test_what_another_training_left_is_not_gone_on_with(tmp_path, specialists):
    given = mixture(specialists, tmp_path / "given", KINDS["B-L-S"])

    def kill(step, _):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train_layers(given, tmp_path / "out", samples(), settings=QUICK, progress=kill)
    other = LayerSettings(steps=4, rows=4, length=32, rate=0.01)
    assert train_layers(given, tmp_path / "out", samples(), settings=other).resumed == 0


def test_a_result_that_is_no_better_is_the_given_routers(tmp_path, specialists):
    given = mixture(specialists, tmp_path / "given", KINDS["B-L-S"])
    wild = LayerSettings(steps=2, rows=2, length=32, rate=1e-12, balance=0.0)
    done = train_layers(given, tmp_path / "out", samples(), settings=wild)
    assert not done.kept
    assert done.report.gain.mean == 0
    old, new = tensors_of(given), tensors_of(tmp_path / "out")
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_rows_are_what_is_read_and_what_is_predicted(specialists):
    encoder = HuggingFaceModel.load(specialists["numbers"]).encoder
    rows = list(rows_of([Sample("abcdefg"), Sample("cd", "ab"), Sample("x")], encoder, 3))
    assert [(len(row.tokens), row.start, row.routed) for row in rows] == [
        (3, 1, 3),
        (3, 1, 3),
        (3, 1, 1),  # the prompt lost its beginning
    ]
    batch = batch_of([Row((5, 6, 7), 2, 2), Row((8, 9), 1, 2)], routing_mask=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7], [-100, 9, -100]]
    assert batch["routing_mask"].tolist() == [[1, 1, 0], [1, 1, 0]]


def test_losses_are_those_of_single_rows(tmp_path, specialists):
    given = mixture(specialists, tmp_path / "given", KINDS["F-L-S"])
    loaded = HuggingFaceModel.load(given)
    rows = list(rows_of(samples()[:7], loaded.encoder, 64))
    together = losses(loaded.module, rows, 4)
    for row, found in zip(rows, together, strict=True):
        ids = torch.tensor([row.tokens])
        with torch.no_grad():
            mean = loaded.module(ids, labels=ids, use_cache=False).loss
        assert found == pytest.approx(float(mean) * (len(row.tokens) - 1), rel=1e-4)


def test_at_model_level_the_losses_are_those_of_the_routes_that_are_forced(tmp_path, specialists):
    given = mixture(specialists, tmp_path / "given", KINDS["M-L-S"])
    loaded = HuggingFaceModel.load(given)
    rows = list(rows_of(samples()[:5], loaded.encoder, 32))
    (name,) = {name.partition(".router.")[0] for name in router_parameters(loaded.module)}
    router = loaded.module.get_submodule(f"{name}.router")
    features, found = forced_losses(loaded.module, f"{name}.router", rows, 2)
    dense = LayerReader(specialists["numbers"], KINDS["M-L-S"])
    texts = [sample.text for sample in samples()[:5]]
    torch.testing.assert_close(features, dense.features(texts)[0], rtol=1e-4, atol=1e-6)
    for expert in range(3):
        with torch.no_grad():
            router.weight.zero_()
            router.bias.copy_(torch.tensor([float(expert == i) for i in range(3)]))
        own = losses(loaded.module, rows, 5)
        expected = [loss / row.counted for loss, row in zip(own, rows, strict=True)]
        assert found[:, expert].tolist() == pytest.approx(expected)


def test_what_cannot_be_trained_is_refused(tmp_path, specialists):
    with pytest.raises(MixtureError, match="has no routers"):
        train_layers(specialists["words"], tmp_path / "out", samples())
    given = mixture(specialists, tmp_path / "given", KINDS["B-L-S"])
    with pytest.raises(InputError, match="too few"):
        train_layers(given, tmp_path / "out", samples()[:2])
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        train_layers(given, tmp_path / "out", samples())
    assert sorted(os.listdir(tmp_path)) == ["given", "out"]
