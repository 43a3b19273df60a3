"""What trains: routers get gradients with one expert at work, experts stay as they are."""

import pytest
import torch
from layer_samples import FAMILIES, LOOSE, PROMPTS, batch, load, mixture, save

from modelglue.mixture.modeling_modelglue import choose, load_balance
from modelglue.mixture.notation import MixtureKind

KINDS = [
    MixtureKind("ffn", "linear", "token", 1),
    MixtureKind("ffn", "linear", "sample", 1),
    MixtureKind("block", "mlp", "sample", 1),
    MixtureKind("model", "linear", "sample", 1, 1),
]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            made[family] = [save(root / str(i), family, seed=i) for i in range(3)]
        return made[family]

    return get


@pytest.fixture
def mixed(tmp_path, models):
    def make(family, kind, **more):
        first, *others = models(family)
        return load(mixture(tmp_path / "out", first, others, kind, seed=3), **more)

    return make


def loss(model):
    inputs = batch(PROMPTS, side="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return model(**inputs, labels=labels)


def named(kind):
    return f"{kind.level}-{kind.input}"


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(
            family,
            kind,
            id=f"{family}-{named(kind)}",
            # Families with a norm after the feed-forward module, and one of the others.
            marks=()
            if family == "llama" or (family in ("gemma2", "olmo2") and kind.level == "ffn")
            else pytest.mark.slow,
        )
        for family in FAMILIES
        for kind in KINDS
        if not (family in LOOSE and kind.level == "ffn")
    ],
)
def test_gradient_reaches_every_router_with_one_expert_at_work(mixed, family, kind):
    model = mixed(family, kind).train()
    loss(model).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if ".router." in name]
    assert gradients
    assert all(gradient.norm() > 1e-5 for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_the_way_of_the_gradient_changes_no_value(mixed, kind):
    model = mixed("llama", kind).train()
    found = loss(model).logits
    with torch.no_grad():
        assert torch.equal(loss(model.eval()).logits, found)


@pytest.mark.parametrize("kind", KINDS[:3], ids=named)
def test_gradient_checkpointing_changes_no_gradient(mixed, kind):
    model = mixed("gemma2", kind).train()
    found = []
    for again in (False, True):
        if again:
            model.activation_checkpointing_enable()
        model.zero_grad()
        loss(model).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found))


def test_a_step_of_the_routers_leaves_experts_unchanged_bit_for_bit(mixed):
    model = mixed("llama", KINDS[2]).train()
    routers = [p for name, p in model.named_parameters() if ".router." in name]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is router for router in routers))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(routers, lr=0.1)
    loss(model).loss.backward()
    optimiser.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(".router." in name for name in changed)


def test_the_balancing_loss_is_one_where_experts_are_used_alike():
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    assert load_balance(logits, 1, None) == pytest.approx(1)
    assert load_balance(logits[:1].expand(4, 2), 1, None) == pytest.approx(2, abs=1e-3)
    padded = torch.cat([logits, logits[:1]])
    assert load_balance(padded, 1, torch.tensor([1, 1, 0])) == pytest.approx(1)


def test_the_balancing_loss_counts_in_training_alone(mixed):
    model = mixed("llama", KINDS[0], router_aux_loss_coef=0.5)
    plain = loss(model)
    assert plain.aux_loss is None
    trained = loss(model.train())
    assert trained.loss.item() == pytest.approx((plain.loss + 0.5 * trained.aux_loss).item())


def test_weights_of_several_experts_sum_to_one():
    choice = choose(torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]]), 2)
    assert choice.experts[0].tolist() == [1, 2]
    assert torch.allclose(choice.weights.sum(dim=1), torch.ones(2))
    ratio = choice.weights[0, 0] / choice.weights[0, 1]
    assert ratio.item() == pytest.approx(torch.tensor(1.0).exp().item())


def test_a_trainer_saves_what_loads_again(tmp_path, mixed):
    from transformers import Trainer, TrainingArguments

    model = mixed("qwen2", KINDS[2])
    rows = [{"input_ids": row, "labels": row} for row in torch.tensor([p[:4] for p in PROMPTS])]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    again = load(tmp_path / "run" / "checkpoint-1")
    assert (tmp_path / "run" / "checkpoint-1" / "modeling_modelglue.py").is_file()
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters()):
        assert torch.equal(one.detach().cpu(), other), name
