"""Routers over whole models, trained on tables: what is minimised, what is kept, what is told."""

import json

import numpy as np
import pytest
import torch
from mixture_samples import PROMPTS, QUESTIONS
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelglue.errors import InputError, MixtureError, OutputExists
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.mix import mix
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter, MLPRouter, widened
from modelglue.mixture.router_scores import NearestRouter, ScoreTable
from modelglue.mixture.training import (
    LossTable,
    TableSettings,
    routed,
    train_on_table,
)
from modelglue.mixture.training_bundle import sample_losses, train_bundle
from modelglue.mixture.training_report import compare
from modelglue.mixture.training_samples import Sample, parted, read_samples, read_scores


def table(samples=300, features=8, experts=3, *, seed=0, curved=False):
    """Losses that a router can foresee: each expert's falls along its own direction.

    Curved, it is the distance from the origin that decides between the first and the others.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, features, generator=generator) * 5 + 2
    directions = torch.randn(experts, features, generator=generator)
    losses = 3 - 0.2 * (x - 2) @ directions.T
    if curved:
        near = ((x - 2)[:, 0].abs() < 3).double()
        losses = torch.stack([1 + near, *([2 - near] * (experts - 1))], dim=1)
    losses = losses + 0.1 * torch.randn(losses.shape, generator=generator)
    return LossTable([f"text {i}" for i in range(samples)], x, losses.double())


def nothing(table):
    """A router that knows nothing."""
    experts, features = table.losses.shape[1], table.features.shape[1]
    generator = torch.Generator().manual_seed(9)
    return LinearRouter(
        torch.randn(experts, features, generator=generator) * 0.1, torch.zeros(experts)
    )


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_training_lowers_the_loss_on_samples_that_nothing_was_chosen_by(kind):
    data = table()
    start = nothing(data) if kind == "linear" else widened(nothing(data))
    trained = train_on_table(start, data)
    report = trained.report
    assert trained.kept
    assert report.after.mean < report.before.mean
    assert report.gain.low > 0
    assert trained.oracle <= report.after.mean < trained.single
    # 90 % of what there is to gain
    assert report.after.mean - trained.oracle < 0.1 * (report.before.mean - trained.oracle)


def test_an_mlp_learns_what_no_linear_router_can():
    data = table(600, features=2, curved=True)
    line = train_on_table(nothing(data), data).report.after.mean
    curve = train_on_table(widened(nothing(data), hidden=32), data).report.after.mean
    assert curve < line - 0.2


def test_what_is_reported_is_the_loss_with_the_expert_that_each_sample_goes_to():
    data = table(60)
    settings = TableSettings(seed=4)
    trained = train_on_table(nothing(data), data, settings=settings)
    part = parted(data.texts, seed=4, stop=0.2, report=0.2).report
    found = []
    for router in (nothing(data), trained.router):
        chosen = [int(router.logits(data.features[i : i + 1]).argmax()) for i in part]
        found.append(np.mean([float(data.losses[i, expert]) for i, expert in zip(part, chosen)]))
    assert trained.report.before.mean == pytest.approx(found[0])
    assert trained.report.after.mean == pytest.approx(found[1])
    assert trained.report.samples == len(part) == 12


def test_several_experts_count_by_their_weights():
    router = LinearRouter(torch.zeros(3, 2), torch.tensor([2.0, 1.0, 0.0]))
    losses = torch.tensor([[1.0, 2.0, 4.0]])
    weight = np.exp(2) / (np.exp(2) + np.exp(1))
    found = routed(router, torch.zeros(1, 2), losses, 2)
    assert float(found[0]) == pytest.approx(weight * 1 + (1 - weight) * 2)


def test_training_is_the_same_each_time_and_another_by_another_seed():
    data = table(120)
    one, same, other = (
        train_on_table(nothing(data), data, settings=TableSettings(seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.router.weight, same.router.weight)
    assert one.report == same.report
    assert not torch.equal(one.router.weight, other.router.weight)


def test_units_and_origin_of_features_and_losses_change_nothing():
    data = table(200)
    units = torch.logspace(-3, 3, 8)
    start = nothing(data)
    moved = LossTable(data.texts, (data.features + 7) * units, data.losses * 100 - 3)
    there = LinearRouter(start.weight / units, start.bias - start.weight.sum(dim=1) * 7)
    one, other = train_on_table(start, data), train_on_table(there, moved)
    agree = one.router.logits(data.features).argmax(dim=1) == other.router.logits(
        moved.features
    ).argmax(dim=1)
    assert agree.double().mean() > 0.98


def test_a_router_that_is_too_sure_to_learn_learns_even_so():
    data = table()
    wrong = nothing(data)
    sure = LinearRouter(wrong.weight * 1e5, wrong.bias)
    assert train_on_table(sure, data).report.gain.low > 0


def test_what_training_does_not_better_is_left_as_it_was():
    data = table(60)
    noise = LossTable(
        data.texts, data.features, torch.rand(60, 3, generator=torch.Generator().manual_seed(2))
    )
    for seed in range(6):
        trained = train_on_table(nothing(data), noise, settings=TableSettings(seed=seed))
        if not trained.kept:
            break
    assert torch.equal(trained.router.weight, nothing(data).weight)
    assert trained.report.gain.mean == 0


def test_balance_and_entropy_do_what_they_say():
    data = table(200)
    losses = data.losses.clone()
    losses[:, 0] -= 10.0  # the first is always best
    lopsided = LossTable(data.texts, data.features, losses)

    def load(**settings):
        settings = TableSettings(**settings)
        return train_on_table(nothing(data), lopsided, settings=settings).router.probabilities(
            data.features
        )

    assert load().mean(dim=0).max() > 0.9
    assert load(balance=5.0).mean(dim=0).max() < 0.7
    sure = load()
    soft = load(entropy=1.0)
    entropy = [float(torch.special.entr(p).sum(dim=1).mean()) for p in (sure, soft)]
    assert entropy[1] > entropy[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.ones(300, 5)}, "for a router that needs"),
        ({"losses": torch.ones(300, 2)}, "for a router that needs"),
        ({"losses": torch.full((300, 3), torch.inf)}, "NaN or infinite"),
    ],
)
def test_a_table_that_is_not_for_the_router_is_refused(change, message):
    data = table()
    fields = {"texts": data.texts, "features": data.features, "losses": data.losses}
    with pytest.raises(MixtureError, match=message):
        train_on_table(nothing(data), LossTable(**{**fields, **change}))


def test_parts_are_disjoint_and_equal_texts_stay_together():
    texts = [f"text {i % 40}" for i in range(100)]
    parts = parted(texts, seed=3, stop=0.2, report=0.3)
    assert sorted(parts.fit + parts.stop + parts.report) == list(range(100))
    found = [{texts[i] for i in part} for part in (parts.fit, parts.stop, parts.report)]
    assert not found[0] & found[1] | found[0] & found[2] | found[1] & found[2]
    assert [len(part) for part in found] == [20, 8, 12]
    with pytest.raises(InputError, match="2 different texts are too few"):
        parted(["a", "b", "a"], seed=0, stop=0.2, report=0.2)


def test_an_interval_is_the_bootstraps():
    generator = np.random.default_rng(1)
    before, counts = generator.random(400) * 30, generator.integers(1, 30, 400).astype(float)
    after = before - counts * 0.1
    found = compare(before, after, counts, unit="nats")
    assert found.before.mean == pytest.approx(before.sum() / counts.sum())
    assert found.gain.mean == pytest.approx(0.1)
    assert found.gain.high - found.gain.low < 1e-9
    ratios = before - before.sum() / counts.sum() * counts
    spread = 1.96 * np.sqrt((ratios**2).sum()) / counts.sum()
    assert found.before.high - found.before.mean == pytest.approx(spread, rel=0.15)


def test_pieces_of_a_document_are_drawn_together():
    generator = np.random.default_rng(1)
    documents = generator.integers(0, 40, 400)
    before, counts = generator.random(400) * 30, generator.integers(1, 30, 400).astype(float)
    names = [f"text {number}" for number in documents]
    found = compare(before, before / 2, counts, documents=names, unit="nats")
    known = list(dict.fromkeys(documents))
    sums, units = (
        np.array([of[documents == one].sum() for one in known]) for of in (before, counts)
    )
    whole = compare(sums, sums / 2, units, unit="nats")
    for one, other in ((found.before, whole.before), (found.gain, whole.gain)):
        assert one.mean == pytest.approx(other.mean)
        assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_a_long_documents_pieces_do_not_make_its_interval_narrower():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=generator)
    losses = torch.rand(60, 2, generator=generator).double()
    texts = [f"text {i}" for i in range(60)]
    once = LossTable(texts, features, losses)
    pieces = [f"{text}, piece {n}" for text in texts for n in range(9)]
    repeated = (tensor.repeat_interleave(9, dim=0) for tensor in (features, losses))
    often = LossTable(pieces, *repeated, documents=[text for text in texts for _ in range(9)])
    alone, parted_up = (
        train_on_table(widened(LinearRouter(torch.zeros(2, 3), torch.zeros(2))), table)
        for table in (once, often)
    )
    assert parted_up.report.samples == 9 * alone.report.samples
    widths = [one.report.before.high - one.report.before.low for one in (alone, parted_up)]
    assert widths[1] == pytest.approx(widths[0], rel=1e-6)


def test_samples_are_read_from_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\r\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"prompt": "p", "completion": "c"}\n')
    assert read_samples(tmp_path / "a.txt") == [Sample("one"), Sample("two")]
    found = read_samples(tmp_path / "b.jsonl")
    assert [(s.text, s.prompt, s.routed_on) for s in found] == [("x", "", "x"), ("c", "p", "p")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "holds no text"),
        ("a.txt", b"\xff", "byte 0 is not UTF-8"),
        ("a.csv", "a", "is a .txt or a .jsonl"),
        ("a.jsonl", '{"prompt": "a"}\n[1]\n{', r"(?s)a.jsonl:1: must have.*:2: .*:3: is not JSON"),
        ("a.jsonl", "\n", "holds nothing"),
    ],
)
def test_files_without_samples_are_refused(tmp_path, name, content, message):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_samples(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"scores": {}}', 'a text in "text"'),
        ('{"text": "a"}', 'numbers in "scores"'),
        ('{"text": "a", "scores": {"x": 1}}', "'x' must have|'y' must have a number"),
        ('{"text": "a", "scores": {"x": 1, "z": 2}}', "'z' is no expert"),
        ('{"text": "a", "scores": {"x": 1, "y": NaN}}', "that of 'y' is nan"),
        ('{"text": "a", "scores": {"x": 1, "y": true}}', "'y' must have a number, and has True"),
    ],
)
def test_lines_without_scores_are_refused(tmp_path, line, message):
    (tmp_path / "scores.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path / "scores.jsonl", ["x", "y"])


def samples():
    return [Sample(text) for own in PROMPTS.values() for text in own]


def test_losses_are_the_experts_own_by_the_byte(bundle_path, experts):
    bundle = Bundle.load(bundle_path)
    asked = [Sample(QUESTIONS[0]), Sample(" yes", "Is it? ")]
    found = sample_losses(bundle_path, bundle.manifest, asked)
    assert found.shape == (2, 3)
    for column, path in enumerate(experts.values()):
        model, tokenizer = (
            kind.from_pretrained(path) for kind in (AutoModelForCausalLM, AutoTokenizer)
        )
        for row, (prompt, text) in enumerate(((None, QUESTIONS[0]), ("Is it?", "  yes"))):
            whole = tokenizer((prompt or "") + text).input_ids
            start = 0 if prompt is None else len(tokenizer(prompt).input_ids)
            if prompt is None:
                whole, start = [1, *whole], 1
            with torch.no_grad():
                logs = model(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
            total = logs[range(start - 1, len(whole) - 1), whole[start:]].sum()
            size = len(QUESTIONS[0]) if prompt is None else 4
            assert float(found[row, column]) == pytest.approx(-float(total) / size, rel=1e-4)


@pytest.fixture(scope="module")
def random_bundle(tmp_path_factory, experts):
    """Three experts that are all the same, but for who answers."""
    out = tmp_path_factory.mktemp("random") / "bundle"
    mix(experts, PROMPTS, out, initialisation="random", seed=2, encoder="words")
    return out


def score_table():
    scores = torch.zeros(60, 3)
    for expert in range(3):
        scores[20 * expert : 20 * expert + 20, expert] = 1.0
    return ScoreTable([sample.text for sample in samples()], scores)


@pytest.mark.parametrize("router", [None, "mlp"])
def test_scores_train_a_router_and_the_experts_stay_byte_for_byte(tmp_path, random_bundle, router):
    before = {path: path.read_bytes() for path in random_bundle.rglob("*") if path.is_file()}
    done = train_bundle(random_bundle, tmp_path / "out", score_table(), router=router)
    assert done.trained.kept
    assert done.trained.report.after.mean < done.trained.report.before.mean
    assert done.trained.report.after.mean < -0.8
    bundle = Bundle.load(tmp_path / "out")
    assert isinstance(bundle.router, LinearRouter if router is None else MLPRouter)
    bundle.verify()
    for path, content in before.items():
        assert path.read_bytes() == content  # the given bundle is as it was
        if "experts" in path.parts:
            assert (tmp_path / "out" / path.relative_to(random_bundle)).read_bytes() == content
    told = json.loads((tmp_path / "out" / "mixture.json").read_text())["router"]
    assert told["kind"] == (router or "linear")
    assert told["training"]["gain"]["mean"] > 0
    assert told["validation"] is None
    assert done.to_json()["oracle"] == -1.0


def test_texts_train_a_router_by_what_the_experts_lose_on_them(tmp_path, random_bundle):
    lines = []
    done = train_bundle(random_bundle, tmp_path / "out", samples(), progress=lines.append)
    trained = done.trained
    assert trained.report.unit == "nats a byte"
    assert trained.report.after.mean <= trained.report.before.mean
    assert len(lines) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_long_texts_are_cut_for_the_shortest_context(tmp_path, random_bundle):
    texts = [Sample(f"{i} é " + "long " * 300) for i in range(6)]
    done = train_bundle(random_bundle, tmp_path / "out", texts)
    assert done.trained.report.samples >= 1


def test_pieces_of_one_document_stay_together(tmp_path, random_bundle):
    texts = [Sample(" ".join(f"{i} {j}" for j in range(300))) for i in range(6)]
    done = train_bundle(random_bundle, tmp_path / "out", texts)
    (report,) = parted(range(6), seed=0, stop=0.2, report=0.2).report
    whole = len(texts[report].text)
    assert done.trained.report.samples == -(-whole // 511)
    with pytest.raises(InputError, match="1 different texts are too few"):
        train_bundle(random_bundle, tmp_path / "none", texts[:1])


def test_a_router_by_neighbours_gives_way_to_a_better_linear_one_alone(tmp_path, experts):
    table = score_table()
    wrong = ScoreTable(table.texts, table.scores.roll(1, dims=1))
    for name, scores in (("good", table), ("bad", wrong)):
        mix(experts, {}, tmp_path / name, initialisation="knn", scores=scores)
    done = train_bundle(tmp_path / "bad", tmp_path / "better", table)
    assert done.trained.kept
    assert isinstance(Bundle.load(tmp_path / "better").router, LinearRouter)
    assert done.trained.report.before.mean > -0.2
    assert done.trained.report.after.mean < -0.8
    told = json.loads((tmp_path / "better" / "mixture.json").read_text())["router"]
    assert not {"items", "examples"} & told.keys()
    # On its own items nothing is better than the items themselves.
    kept = train_bundle(tmp_path / "good", tmp_path / "same", table)
    assert not kept.trained.kept
    assert kept.trained.report.before.mean == kept.trained.report.after.mean == -1.0
    router, given = (Bundle.load(tmp_path / name).router for name in ("same", "good"))
    assert isinstance(router, NearestRouter)
    assert torch.equal(router.items, given.items)
    told = json.loads((tmp_path / "same" / "mixture.json").read_text())["router"]
    assert {"items", "examples"} <= told.keys()


def test_a_place_that_is_taken_is_refused_before_any_work(tmp_path, random_bundle):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        train_bundle(random_bundle, tmp_path / "out", samples())


def test_experts_that_answer_together_are_trained_by_their_shares(tmp_path, make_model):
    two = {name: make_model(tmp_path / name, seed=i) for i, name in enumerate(("numbers", "words"))}
    prompts = {name: PROMPTS[name] for name in two}
    mix(two, prompts, tmp_path / "bundle", kind=MixtureKind(top_k=2))
    table = ScoreTable(score_table().texts[:40], score_table().scores[:40, :2])
    train_bundle(tmp_path / "bundle", tmp_path / "out", table)
    assert Bundle.load(tmp_path / "out").top_k == 2
