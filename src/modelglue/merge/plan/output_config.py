"""The `config.json` of a merge's output: the template's, with what the merge changed."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelglue.merge.plan.layer_counts import recounted
from modelglue.merge.plan.slices import DEPTHS

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

# Lists of numbers of layers.
_NUMBERS = (
    "mlp_only_layers",
    "cross_attention_layers",
    "moe_layers",
    "full_attn_idxs",
    "attn_layer_indices",
)

Origin = tuple[Mapping[str, Any], int]
"""(the `config.json` of the model that an output layer comes from, its number there)"""


def output_config(
    template: Mapping[str, Any],
    *,
    dtypes: Iterable[str],
    tied: bool | None = None,
    layers: Sequence[Origin] = (),
) -> dict[str, Any]:
    """The template's configuration as the output needs it.

    Args:
        template: the configuration to start from.
        dtypes: safetensors names of all floating tensors that are written.
        tied: whether the head is the embedding; None where that is as in the template.
        layers: where each layer of the output comes from; empty where layers are as they were.
    """
    config = copy.deepcopy(dict(template))
    written = set(dtypes)
    if len(written) == 1 and (dtype := _NAMES.get(written.pop())):
        for section in _sections(config):
            if section is config or "dtype" in section or "torch_dtype" in section:
                section.pop("torch_dtype", None)
                section["dtype"] = dtype
    if tied is not None:
        config["tie_word_embeddings"] = tied
        for section in _sections(config):
            if "tie_word_embeddings" in section:
                section["tie_word_embeddings"] = tied
    if layers:
        for name, section in _named_sections(config):
            origins = [(_section(origin, name), number) for origin, number in layers]
            stack(section, origins)
    return config


def _named_sections(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The configuration itself, and that of its text model where one is nested."""
    nested = config.get("text_config")
    return [("", config), *([("text_config", nested)] if isinstance(nested, dict) else [])]


def _sections(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [section for _, section in _named_sections(config)]


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name) if name else config
    return section if isinstance(section, Mapping) else {}


def stack(section: dict[str, Any], layers: Sequence[Origin]) -> None:
    """Set the number of layers, what counts layers, and every list that has an entry a layer.

    Raises:
        NotMergeable: the order of the layers is none that a key can say.
    """
    key = next((key for key in DEPTHS if isinstance(section.get(key), int)), None)
    if key is None:
        return
    before, depth = dict(section), section[key]
    section[key] = len(layers)
    for name, value in before.items():
        if not isinstance(value, list):
            continue
        if name in _NUMBERS:
            section[name] = [
                number
                for number, (origin, layer) in enumerate(layers)
                if layer in (origin.get(name) or ())
            ]
        elif len(value) == depth and ("layer" in name or "block" in name or "pattern" in name):
            section[name] = [_entry(origin, name, layer, value) for origin, layer in layers]
    section.update(recounted(before, layers, key))


def _entry(origin: Mapping[str, Any], name: str, layer: int, fallback: list[Any]) -> Any:
    own = origin.get(name)
    listed = own if isinstance(own, list) and layer < len(own) else fallback
    return listed[layer] if layer < len(listed) else fallback[-1]
