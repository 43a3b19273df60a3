"""Checkpoints of random weights in bf16: a base and fine-tunes that are the base plus small noise.

Written block by block straight into safetensors files, without a model and without torch, so that
memory stays small at any size. Entries come from a table of 65,536 normal quantiles, drawn by
streams keyed by (seed, model, tensor): the same bytes on every machine.
"""

import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16]
Shapes = Mapping[str, tuple[int, ...]]

BLOCK = 1 << 20
BASE_DEVIATION, NOISE_DEVIATION = 0.02, 0.002


@dataclass(frozen=True)
class Llama:
    """The shape of a Llama: what its configuration says."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000

    @property
    def shapes(self) -> Shapes:
        """Every tensor's name and shape; the head is not tied."""
        kv = self.hidden // self.heads * self.kv_heads
        in_layer = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }
        return {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            **{
                f"model.layers.{layer}.{name}.weight": shape
                for layer in range(self.layers)
                for name, shape in in_layer.items()
            },
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.vocabulary, self.hidden),
        }

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


SIZES = {
    "tiny": Llama(layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, vocabulary=256),
    "0.1": Llama(layers=12, hidden=640, ffn=1728, heads=10, kv_heads=2),
    "0.25": Llama(layers=16, hidden=1024, ffn=2816, heads=16, kv_heads=4),
    "1.1": Llama(layers=22, hidden=2048, ffn=5632, heads=32, kv_heads=4),
    "7": Llama(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32),
}
"""Billions of parameters; 1.1 is TinyLlama's shape, 7 is Llama 2's."""


def size_in_bytes(shapes: Shapes) -> int:
    """The bytes of all tensors in bf16."""
    return 2 * sum(int(np.prod(shape)) for shape in shapes.values())


def fabricate(
    folder: Path, shapes: Shapes, config: Mapping[str, Any], *, models: int, seed: int = 0
) -> list[Path]:
    """The base (first) and its fine-tunes as checkpoints in `folder`, made where not there yet."""
    paths = [folder / f"model-{i}" for i in range(models)]
    if all((path / "config.json").exists() for path in paths):
        return paths
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    with ExitStack() as stack:
        files = [stack.enter_context((p / "model.safetensors").open("wb")) for p in paths]
        _write(files, shapes, seed)
    for path in paths:
        _write_tokenizer(path, int(config["vocab_size"]))
        # Last, so that a folder that has it is whole.
        (path / "config.json").write_text(json.dumps(config, indent=2))
    return paths


def linked(path: Path, folder: Path, *, models: int) -> list[Path]:
    """`models` checkpoints that are hard links to one."""
    copies = [folder / f"linked-{i}" for i in range(models)]
    for copy in copies:
        if not copy.exists():
            copy.mkdir(parents=True)
            for file in path.iterdir():
                (copy / file.name).hardlink_to(file)
    return copies


def _write(files: Sequence[BinaryIO], shapes: Shapes, seed: int) -> None:
    header = _header(shapes)
    for file in files:
        file.write(header)
    for number, shape in enumerate(shapes.values()):
        base_stream, *noise_streams = [
            np.random.default_rng([seed, model, number]) for model in range(len(files))
        ]
        centre = 1.0 if len(shape) == 1 else 0.0  # norms scale by about one
        for count in _blocks(int(np.prod(shape))):
            base = centre + BASE_DEVIATION * _normal(base_stream, count)
            files[0].write(_bfloat16(base).data)
            for file, stream in zip(files[1:], noise_streams, strict=True):
                file.write(_bfloat16(base + NOISE_DEVIATION * _normal(stream, count)).data)


def _header(shapes: Shapes) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks(entries: int) -> Iterator[int]:
    for start in range(0, entries, BLOCK):
        yield min(BLOCK, entries - start)


@cache
def _quantiles() -> Floats:
    inverse = statistics.NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / 65536) for i in range(65536)], dtype=np.float32)


def _normal(stream: np.random.Generator, count: int) -> Floats:
    words = stream.integers(0, 1 << 64, size=(count + 3) // 4, dtype=np.uint64)
    return _quantiles()[words.view(np.uint16)[:count]]


def _bfloat16(values: Floats) -> Bits:
    """The bits of the nearest bfloat16, ties to even; the values are finite."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_tokenizer(path: Path, vocabulary: int) -> None:
    words = ["<unk>", "<s>", "</s>", *(f"word{i}" for i in range(3, vocabulary))]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": words[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in range(3)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: i for i, word in enumerate(words)},
            "unk_token": "<unk>",
        },
    }
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path / "tokenizer_config.json").write_text(json.dumps(described))
