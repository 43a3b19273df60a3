from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelglue.errors import CheckpointError, CheckpointNotFound, CorruptCheckpoint, EvaluationError
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.task import Task

PROMPTS = ["the sky is", "a" * 40, "hi"]


@pytest.fixture(scope="module")
def path(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def model(path: Path) -> HuggingFaceModel:
    return HuggingFaceModel.load(path)


def test_it_is_a_language_model_without_dropout_or_gradients(model: HuggingFaceModel) -> None:
    assert isinstance(model, LanguageModel)
    assert not model.module.training
    assert not model.features(["a"]).requires_grad


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_features_are_the_mean_state_of_the_prompt_alone(
    model: HuggingFaceModel, layer: int
) -> None:
    found = model.features(PROMPTS, layer=layer)
    for row, prompt in zip(found, PROMPTS, strict=True):
        ids = torch.tensor([model.tokenizer(prompt).input_ids])
        with torch.no_grad():
            states = model.module(ids, output_hidden_states=True).hidden_states[layer]
        torch.testing.assert_close(row, states[0].mean(dim=0), atol=1e-5, rtol=1e-5)


def test_features_do_not_depend_on_the_batch(model: HuggingFaceModel) -> None:
    together = model.features(PROMPTS, layer=1)
    alone = torch.cat([model.features([prompt], layer=1) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_parameters_count_a_tied_head_once_and_the_experts_at_work(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    tied = HuggingFaceModel.load(make_model(tmp_path / "tied", tie_word_embeddings=True))
    loose = HuggingFaceModel.load(make_model(tmp_path / "loose", tie_word_embeddings=False))
    assert loose.parameters_stored - tied.parameters_stored == 264 * 32
    assert tied.parameters_active == tied.parameters_stored
    sparse = HuggingFaceModel.load(
        make_model(
            tmp_path / "sparse", model_type="mixtral", num_local_experts=4, num_experts_per_tok=1
        )
    )
    experts = 4 * 4 * 3 * 32 * 64
    assert sparse.parameters_stored - sparse.parameters_active == experts * 3 // 4


def test_chat_uses_the_tokenizers_own_template(model: HuggingFaceModel) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(EvaluationError, match="no chat template"):
        model.chat(messages)
    model.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    assert model.chat(messages) == "<user>Hi"
    model.tokenizer.chat_template = None


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="nowhere: there is no such folder"):
        HuggingFaceModel.load(tmp_path / "nowhere")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        HuggingFaceModel.load(tmp_path)


def test_a_missing_tensor_is_not_filled_with_random_numbers(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_model(tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptCheckpoint, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        HuggingFaceModel.load(path)


def test_a_second_evaluation_tokenises_nothing(
    model: HuggingFaceModel,
    write_jsonl: Callable[[str, list[dict[str, Any]]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write_jsonl(
        "s.jsonl",
        [
            {"id": n, "prompt": f"{n} is", "choices": ["even", "odd"], "answer": n % 2}
            for n in (1, 2)
        ],
    )
    task = Task.from_mapping(
        {"name": "parity", "kind": "multiple_choice", "search": file},
        root=Path(),
        splits=["search"],
    )
    first = task.evaluate(model, "search")
    monkeypatch.setattr(model._encoder, "tokenizer", None)
    assert task.evaluate(model, "search") == first
