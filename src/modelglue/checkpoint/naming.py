"""What a tensor is, told from its name and shape alone, for whatever family of models."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from modelglue.checkpoint.spec import TensorSpec

Role = Literal["attention", "mlp", "norm", "embedding", "head", "other"]


@dataclass(frozen=True)
class Place:
    """Where a tensor sits in a model; `layer` is None outside the stack of layers."""

    layer: int | None
    role: Role


@lru_cache(maxsize=65536)
def place(name: str) -> Place:
    """The layer and the role of a tensor.

    >>> place("model.layers.3.self_attn.q_proj.weight")
    Place(layer=3, role='attention')
    >>> place("transformer.wte.weight")
    Place(layer=None, role='embedding')
    """
    layer = _LAYER.search(name)
    return Place(int(layer[1]) if layer else None, _role(name, in_layer=layer is not None))


@lru_cache(maxsize=65536)
def split_layer(name: str) -> tuple[str, int, str] | None:
    """A tensor's name around its layer's number; None outside of layers.

    >>> split_layer("model.layers.3.mlp.up_proj.weight")
    ('model.layers.', 3, '.mlp.up_proj.weight')
    """
    found = _LAYER.search(name)
    return (name[: found.start(1)], int(found[1]), name[found.end(1) :]) if found else None


def is_buffer(name: str) -> bool:
    """Whether it is no weight but something that a model's code computes, which old files hold.

    >>> is_buffer("model.layers.3.self_attn.rotary_emb.inv_freq")
    True
    """
    return _BUFFER.search(name) is not None


def head_and_embedding(tensors: Mapping[str, TensorSpec]) -> tuple[str | None, str | None]:
    """The names of the language-model head and of the token embedding, where there are any.

    The head is told from other tensors at the end of a model (a dense layer before it, a
    classifier) by its shape: the embedding's width, and its rows up to padding.
    """
    outside = [name for name in tensors if split_layer(name) is None]
    embeddings = [name for name in outside if _TOKENS.search(name)]
    for embedding in embeddings:  # of several, the one with a head: others are of images, say
        head = _head(tensors, outside, tensors[embedding].shape)
        if head is not None:
            return head, embedding
    return None, next(iter(embeddings), None)


def _head(
    tensors: Mapping[str, TensorSpec], names: Iterable[str], shape: tuple[int, ...]
) -> str | None:
    """The head to an embedding of that shape; of several the one with the same rows."""
    heads = {
        name: abs(tensors[name].shape[0] - shape[0])
        for name in names
        if len(shape) == 2
        and name.endswith(".weight")
        and place(name).role == "head"
        and tensors[name].shape[1:] == shape[1:]
    }
    head = min(heads, key=heads.__getitem__, default=None)
    return head if head is not None and heads[head] * _PADDING <= shape[0] else None


def _role(name: str, *, in_layer: bool) -> Role:
    # Norms come first: many stand inside of attention (q_norm) or name it (post_attention_norm).
    module = name.rpartition(".")[0]
    if _NORM.search(module):
        return "norm"
    if _BUFFER.search(name):
        return "other"
    # Of what the path says the last counts: `attention.output.dense` against `output.dense`.
    said: list[tuple[int, Role]] = [
        (match.end(), role) for role, pattern in _INSIDE for match in pattern.finditer(module)
    ]
    if said and (in_layer or not _HEAD.search(module)):
        return max(said)[1]
    if _HEAD.search(module) and not in_layer:
        return "head"
    if _EMBEDDING.search(module):
        return "embedding"
    if in_layer and _OUTPUT.search(module):
        return "mlp"
    return "other"


# Head and embedding may be padded differently, by no more than this part of the rows.
_PADDING = 4

# The first number is the layer's; later ones count experts or parts of a layer.
_LAYER = re.compile(r"(?:^|\.)(?:[a-z_]*(?:layers?|blocks?|h)|resblocks)\.([0-9]{1,6})(?:\.|$)")
_NORM = re.compile(
    r"(^|[._])(ln|ln_?[0-9a-z]|ln_attn|ln_mlp"
    r"|[a-z0-9_]*norm(_?[0-9])?|norm_[a-z0-9_]+|[a-z_]*layer_?norm[a-z_]*)$",
    re.IGNORECASE,
)
_BUFFER = re.compile(r"(inv_freq|masked_bias|(^|\.)attn\.bias|\.attention\.bias|position_ids)$")
_HEAD = re.compile(
    r"(^|\.)(lm_head|embed_out|output|output_layer|score|classifier|predictions)(\.|$)"
)
_EMBEDDING = re.compile(
    r"(^|\.)(embed_[a-z_]+|wte|wpe|embeddings?|[a-z]+_embeddings?(_[a-z]+)?|shared)(\.|$)"
)
# The embedding of tokens, not of positions.
_TOKENS = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embeddings?|shared)\.weight$"
)
_OUTPUT = re.compile(r"(^|\.)(output|intermediate)\.dense$")
_INSIDE: tuple[tuple[Role, re.Pattern[str]], ...] = (
    (
        "attention",
        re.compile(
            r"(^|[._])([a-z_]*attn|[a-z_]*attention|[a-z]*selfattention|[qkvo]_proj|qkv(_proj)?"
            r"|Wqkv|c_attn|query_key_value|w[qkvo]|[qkvo]_[ab]_proj)(?=\.|$)",
            re.IGNORECASE,
        ),
    ),
    (
        "mlp",
        re.compile(
            r"(^|[._])(mlp|[a-z_]*feed_forward|ffn[a-z_]*|fc_?(in|out|[0-9])|c_fc|gate_proj"
            r"|up_proj|down_proj|gate_up_proj|experts?|[a-z_]*moe|dense_h_to_4h|dense_4h_to_h"
            r"|w[123]|intermediate)(?=\.|$)"
        ),
    ),
)
