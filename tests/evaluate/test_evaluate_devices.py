"""A model spread over several devices says what it says on one.

There are no GPUs here: hooks are tried with every part on the CPU, and that nothing of one device
meets anything of another is tried with pretended GPUs, on which nothing is computed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

import tiny
from modelglue.errors import EvaluationError, InputError
from modelglue.evaluate import devices
from modelglue.evaluate.devices import device_map, devices_of, dispatched, input_device, spread
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.kvcache import KeyValueCache
from modelglue.evaluate.likelihood import LikelihoodScorer
from modelglue.evaluate.tree import Rows, lay_out

CONTEXTS = ["the sky is", "a" * 30 + " b", ""]
CONTINUATIONS = [[" blue", " grey and blue"], [" c", " cc d"], ["x", "yz"]]
TEXTS = ["one two three four", "x" * 600]
LAYERS = [f"model.layers.{layer}" for layer in range(4)]
PARTS = ["model.embed_tokens", "model.rotary_emb", *LAYERS, "model.norm", "lm_head"]


@pytest.fixture(scope="module")
def path(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("spread") / "llama", initializer_range=0.2)


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

    def said(model: HuggingFaceModel) -> list[Any]:
        return [
            model.loglikelihoods(CONTEXTS, CONTINUATIONS),
            model.text_likelihoods(TEXTS),
            model.generate(CONTEXTS[:2], max_new_tokens=6),
            model.generate(CONTEXTS[:2], max_new_tokens=6, temperature=1.0, seed=3),
            model.rows_at_once(64),
        ]

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


@pytest.fixture
def pretended() -> Any:
    """A model whose upper half stands on a second GPU, both of them pretended."""
    config = AutoModelForCausalLM.from_config
    with FakeTensorMode():
        from transformers import AutoConfig

        module = config(AutoConfig.for_model("llama", **tiny.SIZES)).eval()
        for name, device in over("cuda:0", "cuda:1").items():
            part = module.get_submodule(name).to(device)
            part.register_forward_pre_hook(brought_to(device), with_kwargs=True)
        yield module


def brought_to(device: str) -> Any:
    """What a hook of accelerate's does, but for bringing the output back."""

    def there(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(there, value))
        return value.to(device) if isinstance(value, torch.Tensor) else value

    def hook(_: Any, given: Any, named: dict[str, Any]) -> Any:
        return there(given), {key: there(value) for key, value in named.items()}

    return hook


def test_logits_of_another_device_than_the_inputs_are_taken_there(pretended: Any) -> None:
    rows = Rows([[lay_out([_continued(9, 4)])], [lay_out([_continued(6, 2)])]], "cuda:0")
    scorer = LikelihoodScorer(pretended)
    logits = scorer._logits({"input_ids": rows.ids, "use_cache": False}, rows.places)
    assert str(logits.device) == "cuda:1"
    assert logits.shape[0] == len(rows.places)
    pretended.get_output_embeddings = lambda: None  # a model that does not tell its head
    logits = scorer._logits({"input_ids": rows.ids, "use_cache": False}, rows.places)
    assert str(logits.device) == "cuda:1"


def test_a_cache_keeps_each_layers_part_where_the_layer_stands(pretended: Any) -> None:
    cache = KeyValueCache(pretended.config, 8)
    ids = torch.ones(3, 4, dtype=torch.long, device="cuda:0")
    pretended(ids, past_key_values=cache.inner, use_cache=True)
    cache.select(torch.tensor([0, 2], device="cuda:1"))
    stand = [str(layer.keys.device) for layer in cache.inner.layers]
    assert stand == ["cuda:0"] * 2 + ["cuda:1"] * 2
    assert {len(layer.keys) for layer in cache.inner.layers} == {2}


def _continued(length: int, start: int) -> Any:
    from modelglue.evaluate.encoding import Continued

    return Continued(tuple(range(3, 3 + length)), start)
