"""A model spread over several devices says what it says on one.

There are no GPUs here: accelerate's hooks are tried with every part on the CPU, and that nothing of
one device meets anything of another on devices that are pretended.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from modelglue.errors import EvaluationError, InputError
from modelglue.evaluate import devices
from modelglue.evaluate.devices import device_map, devices_of, dispatched, input_device, spread
from modelglue.evaluate.huggingface import HuggingFaceModel
from pretended import Pretended, stand

CONTEXTS = ["the sky is", "a" * 30 + " b", ""]
CONTINUATIONS = [[" blue", " grey and blue"], [" c", " cc d"], ["x", "yz"]]
TEXTS = ["one two three four", "x" * 600]
QUESTIONS = [f"{'Is snow white? yes ' * 9}Is {what} white?" for what in ("milk", "tar", "a raven")]
LAYERS = [f"model.layers.{layer}" for layer in range(4)]
PARTS = ["model.embed_tokens", "model.rotary_emb", *LAYERS, "model.norm", "lm_head"]


@pytest.fixture(scope="module")
def path(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("spread") / "llama", initializer_range=0.2)


def said(model: HuggingFaceModel) -> list[Any]:
    return [
        model.loglikelihoods(CONTEXTS, CONTINUATIONS),
        model.loglikelihoods(QUESTIONS, [[" yes", " not at all"]] * len(QUESTIONS)),
        model.text_likelihoods(TEXTS),
        # Some stop at once, and the others are moved together.
        model.generate([*CONTEXTS[:2], *QUESTIONS], max_new_tokens=8, stop=["g", "n"]),
        model.generate(CONTEXTS[:2], max_new_tokens=6, temperature=1.0, seed=3),
    ]


def over(first: Any, second: Any) -> dict[str, Any]:
    """The lower half on one device, the rest on another."""
    return {part: first if place < 4 else second for place, part in enumerate(PARTS)}


def test_whole_layers_go_to_each_gpu_about_as_much_to_one_as_to_another(path: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(path)
    found = device_map(module, {0: 1 << 30, 1: 1 << 30})
    placed = [found[layer] for layer in LAYERS]
    assert placed == sorted(placed)
    assert set(placed) == {0, 1}
    assert found["model.embed_tokens"] == 0
    assert found["lm_head"] == 1


def test_what_no_gpus_have_room_for_is_refused_before_it_is_moved(path: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(path)
    with pytest.raises(EvaluationError, match=r"does not fit on 2 GPUs with 0\.0, 0\.0 GB free"):
        device_map(module, {0: 60_000, 1: 60_000})
    assert devices_of(module) == ("cpu",)


def test_without_accelerate_or_gpus_there_is_a_plain_refusal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = torch.nn.Linear(2, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="2 GPUs for one model, and this process sees 1"):
        spread(module, 2)
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="need accelerate, which is not installed: pip install"):
        HuggingFaceModel.load(path, device="cuda", gpus=2)


def test_a_dispatched_model_scores_and_writes_as_it_does_in_one_piece(path: Path) -> None:
    plain = HuggingFaceModel.load(path)
    whole = AutoModelForCausalLM.from_pretrained(path)
    parted = HuggingFaceModel(dispatched(whole, over("cpu", "cpu")), plain.tokenizer)
    assert hasattr(whole.model.layers[2], "_hf_hook")

    assert said(parted) == said(plain)


def test_inputs_go_where_the_input_embedding_stands() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(2, 2)
            self.words = torch.nn.Embedding(2, 2, device="meta")
            self.device = torch.device("cpu")

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.words

    assert input_device(Module()).type == "meta"
    del Module.get_input_embeddings
    assert input_device(Module()).type == "cpu"
    assert devices_of(Module()) == ("cpu", "meta")


@pytest.mark.parametrize("tells_its_head", [True, False])
def test_a_model_on_two_devices_says_what_it_says_on_one(path: Path, tells_its_head: bool) -> None:
    """On devices that are pretended, where tensors of two never meet."""
    module = AutoModelForCausalLM.from_pretrained(path)
    for name, device in over("cpu:0", "cpu:1").items():
        stand(module.get_submodule(name), device)
    if not tells_its_head:  # then it is not known before the end which logits are asked for
        module.get_output_embeddings = lambda: None
    plain = HuggingFaceModel.load(path)
    parted = HuggingFaceModel(module, plain.tokenizer)
    with Pretended():
        found = said(parted)
        ids = torch.tensor([plain.encoder.encode(CONTEXTS[:1])[0]], device="cpu:0")
        assert str(module(ids).logits.device) == "cpu:1"
    assert found == said(plain)
