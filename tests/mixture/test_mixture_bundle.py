"""A bundle answers as the chosen expert alone does, and refuses to open what is damaged."""

import json
import shutil

import pytest
import torch
from mixture_samples import PROMPTS, QUESTIONS, RIGHT
from safetensors.torch import load_file, save_file

from modelglue.errors import MixtureError, OutputExists
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.model import LanguageModel
from modelglue.mixture.bundle import Bundle, Expert, write_bundle
from modelglue.mixture.features import Feature
from modelglue.mixture.mix import mix
from modelglue.mixture.router import LinearRouter


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return Bundle.load(bundle_path)


@pytest.fixture(scope="module")
def alone(experts):
    return [HuggingFaceModel.load(path) for path in experts.values()]


def test_a_bundle_is_a_language_model(bundle):
    assert isinstance(bundle, LanguageModel)


def test_prompts_go_to_the_expert_whose_sort_they_are(bundle):
    assert bundle.experts == tuple(PROMPTS)
    assert [route.expert for route in bundle.route(QUESTIONS)] == RIGHT


def test_probabilities_sum_to_one_and_the_chosen_expert_has_the_largest(bundle):
    for route in bundle.route(QUESTIONS):
        assert sum(route.probabilities) == pytest.approx(1)
        assert max(route.probabilities) == route.probabilities[route.expert]


def test_routes_do_not_depend_on_the_batch(bundle):
    prompts = [*QUESTIONS, "Q: " + "long " * 50]
    alone = [bundle.route([prompt])[0] for prompt in prompts]
    for together in (bundle.route(prompts), bundle.route(prompts[::-1])[::-1]):
        assert [route.expert for route in together] == [route.expert for route in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}])
def test_generations_are_those_of_the_chosen_expert_alone(bundle, alone, options):
    batched = bundle.generate(QUESTIONS, max_new_tokens=12, **options)
    single = [bundle.generate([q], max_new_tokens=12, **options)[0] for q in QUESTIONS]
    own = [
        alone[expert].generate([q], max_new_tokens=12, **options)[0]
        for q, expert in zip(QUESTIONS, RIGHT, strict=True)
    ]
    assert batched == own
    assert single == own
    assert len(set(own)) == len(own)


def test_stop_strings_reach_the_expert(bundle):
    whole = bundle.generate(QUESTIONS[:1], max_new_tokens=12)[0]
    stop = whole[4:6]
    assert bundle.generate(QUESTIONS[:1], max_new_tokens=12, stop=[stop])[0] == whole.split(stop)[0]


def test_likelihoods_are_those_of_the_chosen_expert_alone(bundle, alone):
    continuations = [[" yes", " no, never"], [" 1"], [" a", " b", " c"]] * 2
    mixed = bundle.loglikelihoods(QUESTIONS, continuations)
    for question, own, expert, found in zip(QUESTIONS, continuations, RIGHT, mixed, strict=True):
        expected = alone[expert].loglikelihoods([question], [own])[0]
        assert [f.total for f in found] == pytest.approx([e.total for e in expected], abs=1e-4)
        assert [(f.tokens, f.bytes, f.greedy) for f in found] == [
            (e.tokens, e.bytes, e.greedy) for e in expected
        ]


def test_nothing_asked_is_nothing_answered(bundle):
    assert bundle.generate([], max_new_tokens=3) == []
    assert bundle.loglikelihoods([], []) == []
    assert bundle.route([]) == []


def test_an_empty_prompt_has_a_route(bundle):
    assert bundle.route([""])[0].expert in (0, 1, 2)


def test_identical_experts_equal_the_one(tmp_path, experts):
    path = experts["numbers"]
    prompts = {"a": PROMPTS["numbers"], "b": PROMPTS["words"]}
    mix({"a": path, "b": path}, prompts, tmp_path / "twins")
    twins, one = Bundle.load(tmp_path / "twins"), HuggingFaceModel.load(path)
    assert {route.expert for route in twins.route(QUESTIONS)} == {0, 1}
    assert twins.generate(QUESTIONS, max_new_tokens=10) == one.generate(
        QUESTIONS, max_new_tokens=10
    )


@pytest.mark.parametrize(("question", "mark"), [(QUESTIONS[1], "#user"), (QUESTIONS[2], "<|user")])
def test_a_conversation_goes_through_the_chosen_experts_own_template(
    bundle, monkeypatch, question, mark
):
    seen = []
    expert = bundle.expert(bundle.route([question])[0].expert)
    generate = expert.generate

    def spy(prompts, **options):
        seen.extend(prompts)
        return generate(prompts, **options)

    monkeypatch.setattr(expert, "generate", spy)
    answer = bundle.chat([{"role": "user", "content": question}], max_new_tokens=5)
    assert isinstance(answer, str)
    assert seen[0].startswith(f"{mark}: {question}")


def test_a_growing_conversation_keeps_its_expert(bundle, monkeypatch):
    asked = []
    for index in range(3):
        monkeypatch.setattr(bundle.expert(index), "generate", lambda *_, i=index, **__: [asked, i])
        monkeypatch.setattr(bundle.expert(index).tokenizer, "chat_template", "{{ messages }}")
    first = [{"role": "system", "content": ""}, {"role": "user", "content": QUESTIONS[1]}]
    later = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": QUESTIONS[2]}]
    assert bundle.chat(first) == bundle.chat(first + later * 9)
    whole = "\n".join(message["content"] for message in first + later * 9)
    assert bundle.route([whole])[0].expert != bundle.route([QUESTIONS[1]])[0].expert


def test_an_expert_without_template_says_so(bundle):
    with pytest.raises(MixtureError, match="'numbers', whose tokenizer has no chat template"):
        bundle.chat([{"role": "user", "content": QUESTIONS[0]}])


def test_experts_are_loaded_when_they_are_needed(bundle_path, monkeypatch):
    loaded = []
    load = HuggingFaceModel.load

    def spy(path, **options):
        loaded.append(path.name)
        return load(path, **options)

    monkeypatch.setattr(HuggingFaceModel, "load", spy)
    bundle = Bundle.load(bundle_path)
    bundle.route(QUESTIONS)
    assert loaded == []
    bundle.generate(QUESTIONS[1:2], max_new_tokens=1)
    bundle.generate(QUESTIONS[1:2], max_new_tokens=1)
    assert loaded == ["1"]


def test_parameters_count_every_expert_once_and_the_dearest_way(bundle, alone):
    sizes = [model.parameters_stored for model in alone]
    router = bundle.router.weight.numel() + 3
    encoder = bundle.expert(bundle.manifest.encoder).module.get_input_embeddings().weight.numel()
    assert bundle.parameters_stored == sum(sizes) + router
    assert bundle.parameters_active == max(sizes) + router + encoder


def test_experts_are_untouched(bundle_path, experts):
    for i, folder in enumerate(experts.values()):
        copied = bundle_path / "experts" / str(i)
        assert sorted(p.name for p in copied.iterdir()) == sorted(p.name for p in folder.iterdir())
        for path in folder.iterdir():
            assert (copied / path.name).read_bytes() == path.read_bytes()


def test_the_manifest_says_what_is_in(bundle_path):
    content = json.loads((bundle_path / "mixture.json").read_text())
    assert content["level"] == "model"
    assert content["top_k"] == 1
    assert [e["name"] for e in content["experts"]] == list(PROMPTS)
    assert [e["path"] for e in content["experts"]] == ["experts/0", "experts/1", "experts/2"]
    assert content["experts"][1]["reason"] == "best at words"
    assert len({e["fingerprint"] for e in content["experts"]}) == 3
    assert content["feature"]["encoder"] in PROMPTS
    assert content["router"]["kind"] == "linear"


def test_the_same_inputs_give_the_same_bytes(tmp_path, experts, bundle_path):
    mix(experts, PROMPTS, tmp_path / "again", reasons={"words": "best at words"})
    for name in ("mixture.json", "router.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (bundle_path / name).read_bytes()


def test_an_expert_that_was_changed_is_found(bundle_path, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(bundle_path, folder)
    Bundle.load(folder).verify()
    weights = folder / "experts" / "1" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(MixtureError, match="'words' is not what was bundled"):
        Bundle.load(folder).verify()


def test_a_folder_without_manifest_is_no_mixture(tmp_path):
    with pytest.raises(MixtureError, match=r"is not a mixture: it has no mixture\.json"):
        Bundle.load(tmp_path)


def test_a_torn_manifest_is_refused(damaged):
    folder = damaged(lambda content: None)
    text = (folder / "mixture.json").read_text()
    (folder / "mixture.json").write_text(text[: len(text) // 2])
    with pytest.raises(MixtureError, match=r"mixture\.json can't be read"):
        Bundle.load(folder)


def test_a_manifest_nested_too_deeply_is_refused(damaged):
    folder = damaged(lambda content: None)
    (folder / "mixture.json").write_text("[" * 200_000)
    with pytest.raises(MixtureError, match=r"mixture\.json can't be read"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format=2), "format 2 is not known"),
        (lambda c: c.update(level="ffn"), "level: 'ffn' is not served"),
        (lambda c: c.update(top_k=4), "top_k: 4 of 3 experts cannot"),
        (lambda c: c.update(top_k=0), "top_k: 0 of 3 experts cannot"),
        (lambda c: c.update(top_k=True), "'top_k' must be of type int"),
        (lambda c: c.pop("router"), "'router' is missing"),
        (lambda c: c["router"].update(kind="tree"), r"router\.kind: 'tree' is not known"),
        (lambda c: c["router"].update(kind="mlp"), "no mlp router .*; it is linear over 3"),
        (lambda c: c["router"].update(kind="knn"), "no knn router .* no router's tensors"),
        (lambda c: c.update(experts=[]), "experts: there must be one at least"),
        (lambda c: c["experts"].append(c["experts"][0]), "each with its own name"),
        (lambda c: c["experts"].append(3), "'name' is missing"),
        (lambda c: c["experts"][1].update(name=7), "'name' must be of type str, and is 7"),
        (lambda c: c["experts"][1].update(path="../../x"), "'words' has the path .* leaves"),
        (lambda c: c["experts"][1].update(path="/etc"), "'words' has the path .* leaves"),
        (lambda c: c["experts"][1].update(path="."), "'words' has the path .* leaves"),
        (lambda c: c["experts"][1].update(path="a\0b"), "'words' has the path .* which is none"),
        (lambda c: c["experts"][2].update(path="experts/9"), "'signs' is missing: experts/9"),
        (lambda c: c["feature"].update(encoder="nobody"), "feature.encoder: 'nobody' is none of"),
        (lambda c: c["feature"].update(layer=-1), "can't be computed"),
        (lambda c: c["feature"].update(pooling="last"), "can't be computed"),
        (lambda c: c["feature"].update(layer=99), "layer 99: .* has layers 1 to 4"),
    ],
)
def test_a_damaged_manifest_is_refused_with_the_reason(damaged, edit, message):
    with pytest.raises(MixtureError, match=message):
        Bundle.load(damaged(edit))


def test_a_link_that_leads_out_of_the_folder_is_refused(damaged, experts):
    folder = damaged(lambda content: None)
    shutil.rmtree(folder / "experts" / "0")
    (folder / "experts" / "0").symlink_to(experts["numbers"])
    with pytest.raises(MixtureError, match="leaves the bundle"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "weight": t["weight"][:, :-1].contiguous()}, "an encoder of width"),
        (lambda t: {**t, "bias": t["bias"][:-1].contiguous()}, "an encoder of width"),
        (lambda t: {"weight": t["weight"]}, "an encoder of width"),
        (lambda t: {**t, "bias": t["bias"] * torch.nan}, "holds NaN"),
    ],
)
def test_a_router_that_does_not_fit_is_refused(damaged, change, message):
    path = damaged(lambda content: None) / "router.safetensors"
    tensors = load_file(path)
    save_file(change({name: tensor.clone() for name, tensor in tensors.items()}), path)
    with pytest.raises(MixtureError, match=message):
        Bundle.load(path.parent)


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 40])
def test_a_router_that_is_no_file_of_tensors_is_refused(damaged, content):
    path = damaged(lambda content: None) / "router.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MixtureError, match=r"router\.safetensors can't be read"):
        Bundle.load(path.parent)


def test_a_place_that_is_taken_is_left_alone(bundle_path, experts):
    chosen = [Expert("numbers", experts["numbers"])]
    router = LinearRouter(torch.zeros(1, 32), torch.zeros(1))
    with pytest.raises(OutputExists):
        write_bundle(bundle_path, chosen, router, encoder=0, feature=Feature())


def test_a_router_for_another_number_of_experts_is_not_written(tmp_path, experts):
    chosen = [Expert("numbers", experts["numbers"])]
    router = LinearRouter(torch.zeros(2, 32), torch.zeros(2))
    with pytest.raises(MixtureError, match="knows 2 experts of 1"):
        write_bundle(tmp_path / "out", chosen, router, encoder=0, feature=Feature())
    assert list(tmp_path.iterdir()) == []
