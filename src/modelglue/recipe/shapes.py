"""Modules of other shapes than the template's, for merges that change the number of layers."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.merge.plan.merge_plan import MergePlan


def built_like(model: HuggingFaceModel, config: Mapping[str, Any]) -> HuggingFaceModel:
    """A model of another configuration, all else as it is of `model`; its weights mean nothing.

    Args:
        config: as `config.json` holds it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:  # read as it would be if it was written
        (Path(folder) / "config.json").write_text(json.dumps(config))
        read = AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        module = AutoModelForCausalLM.from_config(read, dtype=model.module.dtype)
    module.generation_config = model.module.generation_config
    built = HuggingFaceModel(
        module,
        model.tokenizer,
        device=model.module.device,
        gpus=model.gpus,
        batch_size=model.batch_size,
        sharers=model.sharers,
    )
    known = model.encoder
    if (built.encoder.max_length, built.encoder.rows) == (known.max_length, known.rows):
        built.encoder = known  # so that no text is tokenised again
    return built


def shape_of(plan: MergePlan) -> str:
    """What two plans have in common whose merges fit one module."""
    return json.dumps({**plan.output_config, "dtype": None}, sort_keys=True, default=str)
