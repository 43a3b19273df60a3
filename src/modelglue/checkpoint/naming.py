"""What a tensor is, told from its name alone, for whatever family of models."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Role = Literal["attention", "mlp", "norm", "embedding", "head", "other"]


@dataclass(frozen=True)
class Place:
    """Where a tensor sits in a model; `layer` is None outside the stack of layers."""

    layer: int | None
    role: Role


_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|cls\.predictions\.decoder)\.(weight|bias)$")
# The embedding of tokens, not of positions.
_TOKENS = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embedding)\.weight$"
)


def head_and_embedding(names: Iterable[str]) -> tuple[str | None, str | None]:
    """The names of the language-model head and of the token embedding, where there are any."""
    head = embedding = None
    for name in names:
        if head is None and name.endswith(".weight") and _HEAD.search(name):
            head = name
        if embedding is None and _TOKENS.search(name):
            embedding = name
    return head, embedding
