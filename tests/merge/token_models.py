"""Tiny models whose vocabularies differ: byte-level BPE trained on a few lines, tokens added."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import tiny

ENGLISH = ["the cat sat on the mat", "the dog ate the cake", "a hat that sat on that mat"] * 3
LATIN = ["gallia est omnis divisa in partes tres", "in principio erat verbum"] * 3
SPECIAL = ["<pad>", "<s>", "</s>"]


def bpe(lines: Sequence[str] = ENGLISH, size: int = 280) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def save(
    path: Path,
    *,
    seed: int,
    added: Sequence[str | AddedToken] = (),
    rows: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    tied: bool = False,
    model_type: str = "llama",
) -> Path:
    """A model with one row a token, or `rows` of them."""
    tokenizer = tokenizer or bpe()
    for token in added:
        tokenizer.add_tokens(token, special_tokens=not isinstance(token, AddedToken))
    sizes = {
        **tiny.SIZES,
        "num_hidden_layers": 1,
        "vocab_size": rows or len(tokenizer),
        "tie_word_embeddings": tied,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def fill(path: Path, name: str, value: float) -> None:
    """Set every entry of one tensor."""
    tensors = load_file(path / "model.safetensors")
    tensors[name].fill_(value)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
