"""An architecture in small, on which it is tried what layouts of a batch its attention can take.

Whether a model takes a tree mask depends on its code and configuration, never on its weights; but
how clearly one sees it does, and a search begins with other weights each time that it is resumed.
So it is tried on a model of the same class and attention, as deep and with layers of the same
kinds, but narrow, with short windows, and with random weights that are the same ones everywhere.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from modelglue.errors import EvaluationError

TOKENS = 64
"""The size of a miniature's vocabulary."""
LENGTH = 16
"""The length of its windows."""
_HEADS, _WIDTH = 2, 32
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
_WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "ffn_hidden_size",
)
# Another result differs by the spread of the logits, rounding by a millionth of it.
_TOLERANCE = 1e-2
# A model's way of saying that it cannot be built so narrow, or that it takes no such input.
_REFUSALS = (
    EvaluationError,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    TypeError,
    AttributeError,
    AssertionError,
    StrictDataclassError,
)


class Miniature:
    """A small model, and what was found out with it.

    Args:
        module: the model; None where it could not be built, and takes no layout then.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._found: dict[str, bool] = {}

    @torch.inference_mode()
    def takes(self, layout: str, tried: Callable[[Any], tuple[Tensor, Tensor]]) -> bool:
        """Whether a layout gives what plain rows give; it is tried once.

        Args:
            layout: what it is called.
            tried: gives what came of plain rows and of the layout with a module, of one shape.
        """
        if layout not in self._found:
            self._found[layout] = self._module is not None and self._agree(tried)
        return self._found[layout]

    def _agree(self, tried: Callable[[Any], tuple[Tensor, Tensor]]) -> bool:
        try:
            plain, other = tried(self._module)
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS:
            return False
        apart = (plain - other).abs().max()
        return bool(apart <= _TOLERANCE * plain.std())  # NaN is not


def miniature(module: Any) -> Miniature:
    """The miniature of a model; models of one architecture share it."""
    config = module.config
    small = _shrunken(config, config.to_dict())
    model: Any = type(module)
    configuration: Any = type(config)
    return _made(
        model,
        configuration,
        json.dumps(small, sort_keys=True, default=str),
        getattr(config, "_attn_implementation", None),
        str(module.device),
    )


@lru_cache(maxsize=16)
def _made(
    model: Any, configuration: Any, content: str, attention: str | None, device: str
) -> Miniature:
    try:
        config = configuration.from_dict(json.loads(content))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            named = {} if attention is None else {"attn_implementation": attention}
            module = model._from_config(config, dtype=torch.float32, **named).eval()
            _sharpen(module)
        return Miniature(module.to(device))
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS:
        return Miniature(None)


@torch.no_grad()
def _sharpen(module: Any) -> None:
    """At its initial weights a model hardly looks at its context."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)


def _shrunken(config: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as a mapping, with narrow layers; those of its parts, too.

    The number of layers, their kinds, and the width of a head stay: rotary factors fit that.
    """
    alias = getattr(type(config), "attribute_map", {})
    small = {key: value for key, value in content.items() if not key.startswith("_")}

    def put(name: str, value: Callable[[int], int]) -> None:
        key = alias.get(name, name)
        if isinstance(given := small.get(key), int) and not isinstance(given, bool) and given > 0:
            small[key] = min(given, value(given))

    heads = getattr(config, "num_attention_heads", None)
    if isinstance(heads, int) and heads > 0:
        fewer = min(heads, _HEADS)
        put("hidden_size", lambda width: width // heads * fewer)
        put("num_key_value_heads", lambda kept: fewer if kept == heads else 1)
        put("num_attention_heads", lambda _: fewer)
    for name in _WIDTHS:
        put(name, lambda _: _WIDTH)
    for name in _WINDOWS:
        put(name, lambda _: LENGTH)
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        put(name, lambda _: TOKENS)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # may lie beyond
        if name in small:
            small[name] = None
    for part in getattr(config, "sub_configs", {}):
        if isinstance(small.get(part), Mapping):
            small[part] = _shrunken(getattr(config, part), small[part])
    small.pop("quantization_config", None)
    return small
