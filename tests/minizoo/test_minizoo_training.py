"""Packing, the loss's weights, and the dev criterion."""

import itertools

import pytest
import torch

from modelglue.minizoo.data.example import Document, stream
from modelglue.minizoo.data.knowledge import Knowledge
from modelglue.minizoo.data.tasks import SKILLS, examples, sources
from modelglue.minizoo.member import _new_model, _tokenizer
from modelglue.minizoo.preset import Member, Shape, Training, presets
from modelglue.minizoo.training import documents, exact_match, pack, train

SHAPE = Shape(hidden=16, layers=1, ffn=32, vocabulary=320)
SETTINGS = Training({"maths": 1.0}, steps=4, learning_rate=1e-2, rows=3, length=64, warmup=1)
WORLD = Knowledge(0, people=10)


@pytest.fixture(scope="module")
def tokenizer():
    return _tokenizer(WORLD, 0, Member("base", "base", SETTINGS), SHAPE)


def new_model(tokenizer):
    return _new_model(SHAPE, tokenizer, 0, Member("base", "base", SETTINGS))


def test_a_tokenizer_comes_out_the_same_twice_and_reads_anything(tokenizer):
    again = _tokenizer(WORLD, 0, Member("base", "base", SETTINGS), SHAPE)
    assert again.get_vocab() == tokenizer.get_vocab()
    text = "Ünïcode, 漢字 and \t tabs"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_packed_documents_score_as_they_do_alone(tokenizer, architecture):
    shape = Shape(architecture, hidden=16, layers=2, ffn=32, vocabulary=320)
    model = _new_model(shape, tokenizer, 0, Member("other", "foreign", SETTINGS)).eval()
    batch = next(pack(documents(sources(WORLD), SETTINGS.data, stream(0)), tokenizer, SETTINGS))
    with torch.inference_mode():
        packed = model(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask
        ).logits
        starts = (batch.tokens == tokenizer.bos_token_id).nonzero()
        for row, start in starts.tolist():
            end = start + 1
            while end < SETTINGS.length and batch.positions[row, end] > 0:
                end += 1
            alone = model(input_ids=batch.tokens[row : row + 1, start:end]).logits[0]
            torch.testing.assert_close(alone, packed[row, start:end], atol=1e-5, rtol=1e-4)


def test_only_completions_weigh_fully_in_the_loss(tokenizer):
    document = Document("Q: one\nA:", " two")
    batch = next(pack(itertools.repeat(document), tokenizer, SETTINGS))
    prompt = len(tokenizer(document.prompt)["input_ids"])
    whole = len(tokenizer(document.prompt + document.completion)["input_ids"]) + 1
    assert (batch.weights[0, prompt:whole] == 1).all()
    assert (batch.weights[0, 1:prompt] < 0.5).all()
    assert batch.weights[0, 0] == 0
    assert batch.tokens[0, whole - 1] == tokenizer.eos_token_id


def test_teacher_forced_matches_are_what_greedy_decoding_writes(tokenizer):
    model = new_model(tokenizer)
    rng = stream("dev")
    settings = Training({"statements": 1.0}, steps=60, learning_rate=1e-2, rows=4, length=32)
    train(model, tokenizer, sources(WORLD), settings, stream("texts"))
    dev = [examples(WORLD, skill, "train", rng) for skill in SKILLS for _ in range(4)]
    hits = 0
    for example in dev:
        ids = tokenizer(example.prompt, return_tensors="pt")["input_ids"]
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        hits += text == example.completion
    assert abs(exact_match(model, tokenizer, dev) - hits / len(dev)) <= 1 / len(dev)


def test_a_model_that_knows_an_answer_matches_it(tokenizer):
    model = new_model(tokenizer)
    example = examples(WORLD, "knowledge", "train", stream("one"))
    known = {"one": lambda _: Document(example.prompt, example.completion)}
    settings = Training({"one": 1.0}, steps=120, learning_rate=2e-2, rows=2, length=64, warmup=1)
    before = exact_match(model, tokenizer, [example])
    train(model, tokenizer, known, settings, stream("texts"))
    assert (before, exact_match(model, tokenizer, [example])) == (0.0, 1.0)


def test_training_stops_once_the_target_is_met_and_the_rate_has_fallen(tokenizer):
    settings = Training(
        {"maths": 1.0},
        steps=50,
        learning_rate=1e-3,
        rows=2,
        length=64,
        target=0.0,
        check_every=5,
        cooldown=3,
    )
    dev = [[examples(WORLD, "maths", "dev", stream("dev"))]]
    effort = train(new_model(tokenizer), tokenizer, sources(WORLD), settings, stream(0), dev=dev)
    assert effort.steps == 8
    assert effort.checks == ((5, 0.0),)


def test_training_without_success_ends_at_its_last_step(tokenizer):
    settings = Training(
        {"maths": 1.0},
        steps=12,
        learning_rate=1e-3,
        rows=2,
        length=64,
        target=2.0,
        check_every=3,
        cooldown=3,
    )
    dev = [[examples(WORLD, "maths", "dev", stream("dev"))]]
    effort = train(new_model(tokenizer), tokenizer, sources(WORLD), settings, stream(0), dev=dev)
    assert effort.steps == 12


def test_training_repeats_bit_for_bit(tokenizer):
    models = [new_model(tokenizer) for _ in range(2)]
    for model in models:
        train(model, tokenizer, sources(WORLD), SETTINGS, stream("texts"))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["quick", "which16"])
def test_presets_hold_the_roles_that_the_recipe_is_judged_on(name):
    preset = presets()[name]
    roles = [member.role for member in preset.members]
    assert roles[0] == "base"
    assert {"specialist", "generalist", "harmful", "drifted", "foreign"} <= set(roles)
    assert len({member.name for member in preset.members}) == len(preset.members)
    assert (preset.search_items, preset.report_items) == (400, 800)


def test_which16_has_the_paper_s_groups():
    preset = presets()["which16"]
    by_role = {member.name: member.role for member in preset.members}
    assert {name: len(group) for name, group in preset.groups.items()} == {
        "which2": 2,
        "which4-chat": 4,
        "which4-domain": 4,
        "which8": 8,
        "which12": 12,
        "which16": 16,
    }
    assert all(set(group) <= set(by_role) for group in preset.groups.values())
    twelve = {by_role[name] for name in preset.groups["which12"]}
    assert not twelve & {"drifted", "foreign"}
    assert sum(role == "drifted" for role in by_role.values()) == 3
    assert sum(role == "foreign" for role in by_role.values()) == 1
