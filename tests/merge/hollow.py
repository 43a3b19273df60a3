"""Checkpoints of any names and shapes, all zeros, made without torch."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from modelglue.checkpoint.spec import BITS

LLAMA = {
    "input_layernorm.weight": (4,),
    "self_attn.q_proj.weight": (4, 4),
    "mlp.up_proj.weight": (6, 4),
}
CONFIG = {"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "tie_word_embeddings": False}


def llama(layers: int, *, head: bool = True) -> dict[str, tuple[int, ...]]:
    """The tensors of a small model of so many layers."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (8, 4)}
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in LLAMA.items()}
    found["model.norm.weight"] = (4,)
    return found | ({"lm_head.weight": (8, 4)} if head else {})


def save(
    path: Path,
    tensors: Mapping[str, tuple[int, ...]] | int = 2,
    *,
    dtype: str | Mapping[str, str] = "BF16",
    **config: Any,
) -> Path:
    """Write a checkpoint.

    Args:
        path: the folder to make.
        tensors: name → shape, or the layers of a small model.
        dtype: of all, or by name.
        **config: what `config.json` holds beside or instead of `CONFIG`.
    """
    if isinstance(tensors, int):
        config = {"num_hidden_layers": tensors, **config}
        tensors = llama(tensors, head=not config.get("tie_word_embeddings", False))
    header: dict[str, Any] = {}
    at = 0
    for name, shape in tensors.items():
        kind = dtype if isinstance(dtype, str) else dtype.get(name, "BF16")
        end = at + prod(shape) * BITS[kind] // 8
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.mkdir()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return path
