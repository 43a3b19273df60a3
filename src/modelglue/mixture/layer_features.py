"""What routers inside of a model see: hidden states before the layers that are mixed.

    block, sample   mean over a text's tokens of the state that enters the decoder layer
    ffn, sample     mean over a text's tokens of what enters the layer's feed-forward module
    ffn, token      that, token by token
    model           mean over a text's tokens of the state that enters the first layer not shared

One model is instantiated, the dense one, and read with hooks; layers and their feed-forward modules
are those that a mixture puts its experts in place of. Where a family norms before the feed-forward
module the feature is what comes after that norm, and where it norms after it (OLMo 2) the state as
it is: always what the module is given, which is what a router in its place is given too.

Texts are encoded as the model reads them, special tokens included, and read whole, as a mixture
reads them; of what is longer than its context the end counts, as there. Padding never counts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelglue.errors import MixtureError
from modelglue.evaluate.huggingface import HuggingFaceModel, on_device
from modelglue.mixture.features import decoder_layers
from modelglue.mixture.modeling_modelglue import feed_forward_names
from modelglue.mixture.notation import MixtureKind

MOST_STATES = 1 << 27
"""Numbers kept of all texts, about; beyond it tokens are left out, evenly (512 MB of fp32)."""
_BATCH_TOKENS = 4096


def layer_features(
    dense: Path, kind: MixtureKind, texts: Sequence[str], *, device: str = "cpu"
) -> list[Tensor]:
    """The features of texts for each mixed layer; see `LayerReader.features`."""
    return LayerReader(dense, kind, device=device).features(texts)


class LayerReader:
    """A dense model whose states are read where routers will stand.

    Args:
        dense: its folder.
        kind: the level, and what a router decides for; `shared_layers` are skipped.

    Raises:
        MixtureError: no layer is left to mix, or the layers or their feed-forward modules can't be
            found.
        CheckpointError: the model can't be loaded.
    """

    def __init__(self, dense: Path, kind: MixtureKind, *, device: str = "cpu") -> None:
        loaded = HuggingFaceModel.load(dense)
        model = loaded.module.base_model
        model = getattr(model, "language_model", model)  # beside which others read images, say
        config = model.config.get_text_config()
        layers = decoder_layers(model, config.num_hidden_layers, dense)
        if kind.shared_layers >= len(layers):
            raise MixtureError(
                f"shared_layers: {kind.shared_layers} of {len(layers)} layers of {dense} leave "
                "none to be mixed"
            )
        mixed = list(layers)[kind.shared_layers :]
        if kind.level == "model":
            mixed = mixed[:1]
        seen = [feed_forward(layer, dense) for layer in mixed] if kind.level == "ffn" else mixed
        self._encoder = loaded.encoder
        # What can be answered at all leaves room for one token.
        self._length = max(1, loaded.encoder.max_length - 1)
        self._by_token = kind.input == "token"
        self._model = on_device(model, device).eval()
        self._device = device
        self._keep: Callable[[int, Tensor], None] = lambda place, states: None
        self.hidden_size: int = config.hidden_size
        self.layers = len(seen)
        for index, module in enumerate(seen):
            module.register_forward_pre_hook(self._hook(index), with_kwargs=True)

    def features(self, texts: Sequence[str], *, most: int = MOST_STATES) -> list[Tensor]:
        """For each mixed layer fp32 [texts, hidden], or [tokens, hidden] if routed by token.

        An empty text gives zeros, or no token. Tokens come text after text; where their states are
        more than `most` numbers, every second, third, … token is kept.
        """
        tokens = [row[-self._length :] for row in self._encoder.encode(texts)]
        rows = [i for i in range(len(texts)) if tokens[i]]
        shape = (sum(map(len, tokens)) if self._by_token else len(texts), self.hidden_size)
        every = -(-shape[0] * shape[1] * self.layers // most) if self._by_token else 1
        found = [torch.zeros(-(-shape[0] // every), self.hidden_size) for _ in range(self.layers)]
        starts = torch.tensor([0, *map(len, tokens)]).cumsum(0).tolist()
        rows.sort(key=lambda i: len(tokens[i]))
        for batch in _batches(rows, tokens):
            self._read([tokens[i] for i in batch], batch, starts, found, every)
        return found

    @torch.inference_mode()
    def _read(
        self,
        tokens: Sequence[Sequence[int]],
        rows: Sequence[int],
        starts: Sequence[int],
        found: Sequence[Tensor],
        every: int,
    ) -> None:
        """Read a batch of texts and put what every layer sees into its place in `found`."""
        parts = [torch.tensor(row) for row in tokens]
        # Padded on the right: under a causal mask no token sees the padding, in any architecture.
        ids = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in parts], batch_first=True)

        def keep(index: int, states: Tensor) -> None:
            states = states.float().cpu()
            if not self._by_token:
                pooled = (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
                found[index][list(rows)] = pooled
                return
            for row, own, length in zip(rows, states, map(len, tokens), strict=True):
                first = -starts[row] % every  # the text's first token that is kept
                begin = (starts[row] + first) // every
                kept = own[first:length:every]
                found[index][begin : begin + len(kept)] = kept

        self._keep = keep
        self._model(
            input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False
        )

    def _hook(self, index: int) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._keep(index, inputs[0] if inputs else named["hidden_states"])

        return hook


def feed_forward(layer: nn.Module, where: object = "the model") -> nn.Module:
    """The feed-forward module of a decoder layer, which a mixture puts its experts in place of.

    Raises:
        MixtureError: there is none, or the layer itself holds its matrices, or there are several.
    """
    names = feed_forward_names(layer)
    if len(names) != 1:
        raise MixtureError(
            f"{where}: {len(names)} modules of {type(layer).__name__} look like its feed-forward "
            "part, where one is needed; use level: block, or level: model"
        )
    return layer.get_submodule(names[0])


def _batches(rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows of rising length, parted so that a batch, padded, has a bounded size."""
    batches: list[list[int]] = []
    for row in rows:
        if not batches or (len(batches[-1]) + 1) * len(tokens[row]) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    return batches
