"""What a router sees of a prompt: the mean of an encoder's hidden states over its tokens.

The encoder is one of the experts. At layer 0 the states are the rows of its input embedding, so
the feature costs one table in memory and no forward pass; at layer L it costs the first L layers.
A prompt is encoded without special tokens and cut after `max_tokens`; padding never counts. Router
initialisation and routing go through the same `Encoder`, so a prompt has one feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from modelglue.checkpoint.naming import head_and_embedding
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import CheckpointError, MixtureError
from modelglue.evaluate.encoding import rowless_token
from modelglue.evaluate.huggingface import (
    LOADING_ERRORS,
    HuggingFaceModel,
    embedding_rows,
    on_device,
)
from modelglue.mixture.modeling_modelglue import find_layers

_BATCH = 32


@dataclass(frozen=True)
class Feature:
    """Which feature a router was made for.

    Args:
        layer: 0 is the input embedding, L the output of decoder layer L (before any final norm).
        max_tokens: tokens of a prompt that are looked at, from its start.
        pooling: over the tokens; only the mean.
    """

    layer: int = 0
    max_tokens: int = 512
    pooling: str = "mean"


class Encoder(Protocol):
    """Turns prompts into features."""

    hidden_size: int
    parameters: int

    def features(self, prompts: Sequence[str]) -> Tensor:
        """fp32 [prompts, hidden]; an empty prompt gives zeros.

        Raises:
            MixtureError: a token has no row in the encoder's embedding.
        """
        ...


def open_encoder(path: Path, feature: Feature, *, device: str = "cpu") -> Encoder:
    """The encoder that a checkpoint gives for `feature`.

    Raises:
        MixtureError: the checkpoint has no such layer, or no embedding that can be told by name.
        CheckpointError: its weights or its tokenizer can't be loaded.
    """
    if feature.layer == 0:
        return EmbeddingEncoder(path, feature)
    return LayerEncoder(path, feature, device=device)


class EmbeddingEncoder:
    """The mean input embedding; reads that one table of the checkpoint, in its own dtype.

    It stays on the CPU, and each prompt is pooled alone, so neither device nor batch changes a bit.
    """

    def __init__(self, path: Path, feature: Feature) -> None:
        with Checkpoint.open(path) as checkpoint:
            self._table = checkpoint.read(_embedding_name(checkpoint))
        self._tokens = _Tokens(path, feature, rows=len(self._table))
        self.hidden_size = self._table.shape[1]
        self.parameters = self._table.numel()

    def features(self, prompts: Sequence[str]) -> Tensor:
        """fp32 [prompts, hidden]; an empty prompt gives zeros."""
        # Loading a model elsewhere in the process changes the default dtype while it lasts.
        pooled = torch.zeros(len(prompts), self.hidden_size, dtype=torch.float32)
        for row, tokens in zip(pooled, self._tokens(prompts), strict=True):
            if tokens:
                row.copy_(self._table[torch.tensor(tokens)].float().mean(dim=0))
        return pooled


class LayerEncoder:
    """The mean output of a decoder layer; the layers above it are not kept."""

    def __init__(self, path: Path, feature: Feature, *, device: str = "cpu") -> None:
        model = HuggingFaceModel.load(path).module.base_model
        config = model.config.get_text_config()
        layers = decoder_layers(model, config.num_hidden_layers, path)
        if feature.layer > len(layers):
            raise MixtureError(
                f"feature layer {feature.layer}: {path} has layers 1 to {len(layers)} "
                "(0 is its input embedding)"
            )
        del layers[feature.layer :]
        positions = getattr(config, "max_position_embeddings", None) or feature.max_tokens
        self._tokens = _Tokens(path, feature, rows=embedding_rows(model), most=positions)
        self._model = on_device(model, device).eval()
        self._device = device
        # The model's own last state is normed; the hook sees the layer's.
        layers[-1].register_forward_hook(self._keep)
        self._states = torch.empty(0)
        self.hidden_size: int = config.hidden_size
        self.parameters = sum(parameter.numel() for parameter in model.parameters())

    def features(self, prompts: Sequence[str]) -> Tensor:
        """fp32 [prompts, hidden]; an empty prompt gives zeros."""
        tokens = self._tokens(prompts)
        pooled = torch.zeros(len(prompts), self.hidden_size, dtype=torch.float32)
        by_length = sorted((i for i, row in enumerate(tokens) if row), key=lambda i: len(tokens[i]))
        for start in range(0, len(by_length), _BATCH):
            chosen = by_length[start : start + _BATCH]
            pooled[chosen] = self._pool([tokens[i] for i in chosen])
        return pooled

    @torch.inference_mode()
    def _pool(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        rows = [torch.tensor(row) for row in tokens]
        # Padded on the right: under a causal mask no token sees the padding, in any architecture.
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        self._model(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False
        )
        states = self._states.float().cpu()
        return (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def _keep(self, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        self._states = output[0] if isinstance(output, tuple) else output


class _Tokens:
    """A checkpoint's tokenizer, as routing uses it."""

    def __init__(
        self, path: Path, feature: Feature, *, rows: int | None, most: int | None = None
    ) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except LOADING_ERRORS as error:
            raise CheckpointError(f"{path}: its tokenizer can't be loaded: {error}") from error
        self._path = path
        self._rows = rows
        self._most = min(feature.max_tokens, most or feature.max_tokens)

    def __call__(self, prompts: Sequence[str]) -> list[list[int]]:
        if not prompts:
            return []
        # Cut here and not by the tokenizer, whose own settings may cut or pad on the other side.
        encoded = self._tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        cut = [list(row[: self._most]) for row in encoded]
        for row in cut:
            if problem := rowless_token(self._tokenizer, row, self._rows):
                raise MixtureError(f"{self._path}: {problem}")
        return cut


def _embedding_name(checkpoint: Checkpoint) -> str:
    _, embedding = head_and_embedding(checkpoint.tensors)
    if embedding is None:
        raise MixtureError(
            f"{checkpoint.path}: no tensor is an input embedding by its name; "
            "choose another expert as encoder, or a layer above 0"
        )
    return embedding


def decoder_layers(model: nn.Module, count: int, path: Path) -> nn.ModuleList:
    """The stack of a model's `count` decoder layers.

    Raises:
        MixtureError: no module of the model (from `path`) is such a stack.
    """
    try:
        return find_layers(model, count)[0]
    except ValueError:
        raise MixtureError(
            f"{path}: its {count} decoder layers can't be found; choose another expert as encoder, "
            "or layer 0"
        ) from None
