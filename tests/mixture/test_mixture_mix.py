"""From checkpoints and prompts to a bundle."""

import json
import os

import pytest
import torch
from mixture_samples import PROMPTS, QUESTIONS, RIGHT
from safetensors.torch import load_file, save_file

from modelglue.errors import CheckpointNotFound, MixtureError, OutputExists, UnknownName
from modelglue.mixture import mix as mix_module
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.features import Feature
from modelglue.mixture.mix import mix
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router_scores import NearestRouter, ScoreTable


def routes(path):
    return [route.expert for route in Bundle.load(path).route(QUESTIONS)]


def test_the_summary_says_how_the_router_was_made_and_how_it_fares(tmp_path, experts):
    summary = mix(experts, PROMPTS, tmp_path / "out")
    assert summary.path == tmp_path / "out"
    assert summary.experts == tuple(PROMPTS)
    assert summary.encoder in PROMPTS
    assert summary.initialisation == "discriminant"
    assert 0 < summary.shrinkage <= 1
    assert 1 <= summary.condition < float("inf")
    assert sum(map(sum, summary.validation.counts)) == sum(map(len, PROMPTS.values()))
    assert summary.validation.accuracy > 0.9


@pytest.mark.parametrize("initialisation", ["discriminant", "mean_difference", "nearest_mean"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("router", ["linear", "mlp"])
def test_every_initialisation_router_and_layer_routes_plain_cases(
    tmp_path, experts, initialisation, layer, router
):
    feature, kind = Feature(layer=layer), MixtureKind(router=router)
    out = tmp_path / "out"
    mix(experts, PROMPTS, out, feature=feature, initialisation=initialisation, kind=kind)
    assert routes(out) == RIGHT
    assert json.loads((out / "mixture.json").read_text())["router"]["kind"] == router


def test_an_mlp_router_begins_with_the_probabilities_of_the_linear_one(tmp_path, experts):
    found = []
    for router in ("linear", "mlp"):
        kind = MixtureKind(router=router)
        mix(experts, PROMPTS, tmp_path / router, kind=kind, encoder="words")
        found.append(Bundle.load(tmp_path / router).route(QUESTIONS))
    for one, other in zip(*found, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_a_random_router_is_its_seeds(tmp_path, experts):
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        mix(experts, PROMPTS, tmp_path / place, initialisation="random", seed=seed)
    one, same, other = (Bundle.load(tmp_path / place).route(QUESTIONS) for place in "abc")
    assert one == same
    assert one != other


def scored_items():
    """Every prompt as an item that its own expert alone is right on."""
    texts = [text for own in PROMPTS.values() for text in own]
    scores = torch.zeros(len(texts), 3)
    for expert in range(3):
        scores[20 * expert : 20 * expert + 20, expert] = 1.0
    return ScoreTable(texts, scores)


@pytest.mark.parametrize(("router", "kind"), [("linear", "knn"), ("mlp", "mlp")])
def test_scored_items_need_no_prompts(tmp_path, experts, router, kind):
    summary = mix(
        experts,
        {},
        tmp_path / "out",
        kind=MixtureKind(router=router),
        initialisation="knn",
        scores=scored_items(),
    )
    assert routes(tmp_path / "out") == RIGHT
    content = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert content["router"]["kind"] == kind
    assert summary.items.items == 60
    assert summary.items.single == pytest.approx(1 / 3)
    assert summary.items.routed > 0.9
    assert summary.to_json()["items"]["oracle"] == 1.0


def test_with_one_neighbour_every_item_goes_to_its_best_expert(tmp_path, experts):
    table = scored_items()
    mix(experts, {}, tmp_path / "out", initialisation="knn", scores=table)
    bundle = Bundle.load(tmp_path / "out")
    one = NearestRouter(
        bundle.router.items, bundle.router.scores, bundle.router.scale, 1, bundle.router.sharpness
    )
    bundle.router = one
    found = [route.expert for route in bundle.route(table.texts)]
    assert found == table.scores.argmax(dim=1).tolist()


def test_the_prompts_nearest_to_their_mean_are_told_as_examples(tmp_path, experts):
    mix(experts, PROMPTS, tmp_path / "out")
    examples = json.loads((tmp_path / "out" / "mixture.json").read_text())["router"]["examples"]
    assert list(examples) == list(PROMPTS)
    for name, texts in examples.items():
        assert len(texts) == 5
        assert set(texts) <= set(PROMPTS[name])


def test_permuting_the_experts_permutes_the_routes(tmp_path, experts):
    order = ["signs", "numbers", "words"]
    mix({name: experts[name] for name in order}, PROMPTS, tmp_path / "out")
    names = list(PROMPTS)
    assert [order[i] for i in routes(tmp_path / "out")] == [names[i] for i in RIGHT]
    assert Bundle.load(tmp_path / "out").experts == tuple(order)


def test_a_named_encoder_is_used(tmp_path, experts):
    for name in experts:
        summary = mix(experts, PROMPTS, tmp_path / name, encoder=name)
        assert summary.encoder == name
        assert routes(tmp_path / name) == RIGHT


def test_encoders_are_opened_one_at_a_time(tmp_path, experts, monkeypatch):
    alive, most = 0, 0
    open_encoder = mix_module.open_encoder

    class Counted:
        def __init__(self, *arguments, **options):
            nonlocal alive, most
            self.encoder = open_encoder(*arguments, **options)
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

        def features(self, prompts):
            return self.encoder.features(prompts)

    monkeypatch.setattr(mix_module, "open_encoder", Counted)
    mix(experts, PROMPTS, tmp_path / "out")
    assert (alive, most) == (0, 1)


def test_repeated_prompts_count_once(tmp_path, experts):
    repeated = {name: [*texts, *texts] for name, texts in PROMPTS.items()}
    mix(experts, repeated, tmp_path / "a")
    mix(experts, PROMPTS, tmp_path / "b")
    for name in ("mixture.json", "router.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_negatives_turn_prompts_away(tmp_path, experts):
    # Upper-case letters are nobody's own; unless told otherwise they go to the words.
    prompts = {"numbers": PROMPTS["numbers"], "words": PROMPTS["words"]}
    two = {name: experts[name] for name in prompts}
    shouts = ["HOUSE TREE", "RIVER", "STONE CLOUD", "LAMP", "WINDOW", "SEA AND LAND"]
    asked = ["MOUNTAIN", "CLOUD HOUSE"]
    mix(two, prompts, tmp_path / "plain")
    mix(two, prompts, tmp_path / "told", negatives={"words": [*shouts, *prompts["numbers"]]})
    before = Bundle.load(tmp_path / "plain").route(asked)
    after = Bundle.load(tmp_path / "told").route(asked)
    for old, new in zip(before, after, strict=True):
        assert new.probabilities[1] < old.probabilities[1]


def test_one_expert_is_a_mixture_too(tmp_path, experts):
    one = {"words": experts["words"]}
    summary = mix(one, {"words": PROMPTS["words"]}, tmp_path / "out")
    assert summary.validation is None
    assert routes(tmp_path / "out") == [0] * len(QUESTIONS)


def test_one_prompt_an_expert_is_enough(tmp_path, experts):
    summary = mix(experts, {name: texts[:1] for name, texts in PROMPTS.items()}, tmp_path / "out")
    assert summary.validation is None


def test_experts_that_nothing_tells_apart_show_in_the_condition(tmp_path, experts):
    same = dict.fromkeys(experts, PROMPTS["words"])
    summary = mix(experts, same, tmp_path / "out")
    assert summary.condition == float("inf")
    assert summary.validation.accuracy < 0.7
    (said,) = summary.confusions
    assert said.startswith("the router cannot tell numbers, words, signs apart (condition ∞)")
    Bundle.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": {"numbers": ["1"], "words": ["a"]}}, "prompts: none for signs"),
        ({"prompts": {**PROMPTS, "word": ["a"]}}, "prompts: 'word' .* did you mean \"words\""),
        ({"prompts": {**PROMPTS, "words": []}}, "prompts: 'words' has none"),
        ({"prompts": {**PROMPTS, "words": ["", " "]}}, "prompts: 'words' has none"),
        ({"negatives": {"nobody": ["a"]}}, "negatives: 'nobody' is no expert"),
        ({"negatives": {"words": []}}, "negatives: 'words' has none"),
        ({"encoder": "number"}, "encoder 'number' .* did you mean \"numbers\""),
        ({"experts": {}, "prompts": {}}, "at least one expert"),
        ({"initialisation": "knn"}, "'knn' and a table of scores belong together"),
        ({"scores": ScoreTable(["a"], torch.ones(1, 3))}, "give both or none"),
        (
            {"initialisation": "knn", "scores": ScoreTable(["a"], torch.ones(1, 2))},
            "has 2 experts of 3",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, experts, change, message):
    given = {"experts": experts, "prompts": PROMPTS, "out": tmp_path / "out", **change}
    with pytest.raises(MixtureError, match=message):
        mix(**given)
    assert os.listdir(tmp_path) == []


def test_a_misspelled_initialisation_is_named(tmp_path, experts):
    with pytest.raises(UnknownName, match='did you mean "discriminant"'):
        mix(experts, PROMPTS, tmp_path / "out", initialisation="discriminent")


def test_a_place_that_is_taken_is_refused_before_any_work(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        mix({"a": tmp_path / "nothing"}, {"a": ["x"]}, tmp_path / "out")


def test_a_missing_expert_leaves_nothing_behind(tmp_path, experts):
    with pytest.raises(CheckpointNotFound):
        mix({**experts, "signs": tmp_path / "nothing"}, PROMPTS, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_base_with_an_adapter_is_bundled_as_one_plain_model(tmp_path, experts):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    module = "model.layers.1.self_attn.o_proj"
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((2, 32), (32, 2)))
    names = {"lora_A": down, "lora_B": up}
    save_file(
        {f"base_model.model.{module}.{name}.weight": value for name, value in names.items()},
        adapter / "adapter_model.safetensors",
    )
    base = experts["numbers"]
    two = {"numbers": f"{base}+{adapter}", "words": experts["words"]}
    mix(two, {name: PROMPTS[name] for name in two}, tmp_path / "out")

    bundled = load_file(tmp_path / "out" / "experts" / "0" / "model.safetensors")
    plain = load_file(base / "model.safetensors")
    changed = {name for name in plain if not torch.equal(plain[name], bundled[name])}
    assert changed == {f"{module}.weight"}
    torch.testing.assert_close(
        bundled[f"{module}.weight"] - plain[f"{module}.weight"], 2 * up @ down
    )
    Bundle.load(tmp_path / "out").generate(QUESTIONS[:2], max_new_tokens=2)
    assert sorted(os.listdir(tmp_path)) == ["adapter", "out"]
