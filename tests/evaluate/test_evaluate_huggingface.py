import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from modelglue.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    EvaluationError,
    InputError,
)
from modelglue.evaluate.file_task import FileTask
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.model import LanguageModel


@pytest.fixture(scope="module")
def path(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def model(path: Path) -> HuggingFaceModel:
    return HuggingFaceModel.load(path)


def test_it_is_a_language_model_without_dropout(model: HuggingFaceModel) -> None:
    assert isinstance(model, LanguageModel)
    assert not model.module.training


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


def test_a_damaged_file_of_weights_is_refused(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_model(tmp_path / "model")
    (path / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        HuggingFaceModel.load(path)


def test_weights_that_are_no_pickle_are_refused(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_model(tmp_path / "model")
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        HuggingFaceModel.load(path)


def test_a_setting_of_the_wrong_type_is_refused(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_model(tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": "four"}))
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        HuggingFaceModel.load(path)


@pytest.mark.parametrize("device", ["nonsense", "mps:99"])
def test_a_device_that_is_not_there_is_refused(path: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}' cannot be used: "):
        HuggingFaceModel.load(path, device=device)


def test_a_token_without_a_row_in_the_embedding_is_named(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = HuggingFaceModel.load(make_model(tmp_path / "model"))
    model.tokenizer.add_tokens([f"<extra{n}>" for n in range(9)])
    last = len(model.tokenizer) - 1
    message = rf"'<extra8>' with id {last}, but the model's embedding has 264 rows"
    with pytest.raises(EvaluationError, match=message):
        model.generate(["a<extra8>"], max_new_tokens=1)
    with pytest.raises(EvaluationError, match=message):
        model.loglikelihoods(["a"], [[" b", " <extra8>"]])
    assert model.generate(["a"], max_new_tokens=1)


def test_how_many_rows_are_decoded_at_once_does_not_depend_on_free_memory(
    model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**14, "SC_AVPHYS_PAGES": 2**14}
    monkeypatch.setattr(os, "sysconf", memory.__getitem__)
    rows = model.rows_at_once(512)
    assert 1 < rows < 256
    memory["SC_AVPHYS_PAGES"] = 1
    assert model.rows_at_once(512) == rows
    model.sharers = 2
    assert rows // 3 < model.rows_at_once(512) < rows
    model.sharers = 1
    memory["SC_PHYS_PAGES"] = 1
    assert model.rows_at_once(512) == 1


def test_a_containers_limit_bounds_the_rows_that_are_decoded_at_once(
    model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = model.rows_at_once(512)
    (tmp_path / "memory.max").write_text(str(2**26))
    monkeypatch.setattr("modelglue.machine._CGROUP", tmp_path)
    assert model.rows_at_once(512) < rows


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
    task = FileTask.from_mapping(
        {"name": "parity", "kind": "multiple_choice", "search": file},
        root=Path(),
        splits=["search"],
    )
    first = task.evaluate(model, "search")
    monkeypatch.setattr(model.encoder, "tokenizer", None)
    assert task.evaluate(model, "search") == first
