"""Tiny checkpoints with random weights, saved by transformers itself."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 264,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, after four special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def save_model(path: Path, *, seed: int = 0, model_type: str = "llama", **overrides: Any) -> Path:
    """A model of `model_type` with the sizes above, its tokenizer beside it.

    `dtype`, `max_shard_size` and any configuration key can be given.
    """
    dtype = overrides.pop("dtype", torch.float32)
    shard = overrides.pop("max_shard_size", "1GB")
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**SIZES, **overrides})
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(path, max_shard_size=shard)
    tokenizer().save_pretrained(path)
    return path


def save_variant(base: Path, path: Path, *, seed: int, scale: float = 0.003) -> Path:
    """A "fine-tune": the base plus small Gaussian noise on every tensor."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.dtype) * scale)
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path
