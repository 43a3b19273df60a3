"""What is said of a model."""

import json
from pathlib import Path

import pytest
import torch

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.zoo.inspect import Description, describe


def test_a_model_is_described(llamas: list[Path]) -> None:
    found = describe(Checkpoint.open(llamas[0]))
    assert found.name == "base"
    assert found.architecture == "LlamaForCausalLM"
    assert found.model_type == "llama"
    assert (found.layers, found.hidden, found.intermediate) == (4, 32, 64)
    assert (found.heads, found.key_value_heads, found.vocabulary) == (4, 2, 264)
    assert found.dtypes == {"F32": found.parameters}
    assert found.nbytes == 4 * found.parameters
    assert not found.tied
    assert found.files == {"model.safetensors": (llamas[0] / "model.safetensors").stat().st_size}
    assert found.adapters == ()


def test_shards_dtypes_and_tied_heads_are_seen(tmp_path: Path) -> None:
    path = tiny.save_model(
        tmp_path / "m",
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
        max_shard_size="60KB",
    )
    found = describe(Checkpoint.open(path))
    assert found.tied
    assert found.dtypes == {"BF16": found.parameters}
    assert len(found.files) == len(list(path.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "qwen2"])
def test_other_families_say_it_in_other_words(tmp_path: Path, model_type: str) -> None:
    path = tiny.save_model(tmp_path / model_type, model_type=model_type)
    found = describe(Checkpoint.open(path))
    assert (found.model_type, found.layers, found.hidden, found.heads) == (model_type, 4, 32, 4)
    assert found.vocabulary == 264


def test_json_round_trips(llamas: list[Path]) -> None:
    found = describe(Checkpoint.open(llamas[0]))
    assert Description.from_json(json.loads(json.dumps(found.to_json()))) == found
