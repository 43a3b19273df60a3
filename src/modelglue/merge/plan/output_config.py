"""The `config.json` of a merge's output: the template's, with what the merge changed."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelglue.errors import NotMergeable
from modelglue.merge.plan.depths import Path, counted_by
from modelglue.merge.plan.layer_counts import NUMBERS, Layers, recounted
from modelglue.merge.plan.layer_kinds import Kind, untold

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True)
class Restacked:
    """The layers of one stack of the output.

    Attributes:
        stack: what the names of their tensors begin with.
        layers: where each is from: the `config.json` of its model, and its number there.
        kinds: what comes after the number in the names of each layer's tensors.
        own: the same of the template's layers.
    """

    stack: str
    layers: tuple[tuple[Mapping[str, Any], int], ...]
    kinds: tuple[Kind, ...]
    own: tuple[Kind, ...]


def output_config(
    template: Mapping[str, Any],
    *,
    dtypes: Iterable[str],
    tied: bool | None = None,
    stacks: Sequence[Restacked] = (),
    depths: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The template's configuration as the output needs it.

    Args:
        template: the configuration to start from.
        dtypes: safetensors names of all floating tensors that are written.
        tied: whether the head is the embedding; None where that is as in the template.
        stacks: whose layers are not as they were.
        depths: the number of layers of every stack of the template.

    Raises:
        NotMergeable: what a configuration would have to say of the layers cannot be said.
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
    for restacked in stacks:
        _restack(config, template, restacked, depths or {})
    return config


def _restack(
    config: dict[str, Any],
    template: Mapping[str, Any],
    restacked: Restacked,
    depths: Mapping[str, int],
) -> None:
    places = counted_by(template, restacked.stack, depths)
    if not places and len(depths) > 1 and len(restacked.layers) != depths.get(restacked.stack):
        raise NotMergeable(
            f"slices: no key of config.json counts the layers of {restacked.stack}0…, so that "
            "there cannot be more or fewer of them"
        )
    for path, keys in places.items():
        section = _inner(config, path)
        origins = [(_inner(origin, path), number) for origin, number in restacked.layers]
        stack(section, origins, keys)
    path, (key, *_) = next(reversed(places.items()), ((), [""]))
    before, after = _inner(template, path), _inner(config, path)
    origins = [(_inner(origin, path), number) for origin, number in restacked.layers]
    number = untold(after, origins, restacked.kinds, before, restacked.own, key)
    if number is not None:
        raise NotMergeable(
            f"slices: layer {number} of the output ({restacked.stack}{number}…, layer "
            f"{restacked.layers[number][1]} of its model) is of another kind than config.json can "
            "tell of that place. Take whole runs that keep the order of the kinds."
        )


def _inner(config: Any, path: Path) -> Any:
    for key in path:
        config = config.get(key)
        if not isinstance(config, Mapping):
            return {}
    return config


def _named_sections(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The configuration itself, and that of its text model where one is nested."""
    nested = config.get("text_config")
    return [("", config), *([("text_config", nested)] if isinstance(nested, dict) else [])]


def _sections(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [section for _, section in _named_sections(config)]


def stack(section: dict[str, Any], layers: Layers, keys: Sequence[str]) -> None:
    """Set the number of layers, what counts layers, and every list that has an entry a layer.

    Args:
        section: of the configuration.
        layers: (the section of its model's configuration, its number there) of every layer.
        keys: which count them; all hold the same number.

    Raises:
        NotMergeable: the order of the layers is none that a key can say.
    """
    before, depth = dict(section), section[keys[0]]
    section.update(dict.fromkeys(keys, len(layers)))
    for name, value in before.items():
        if not isinstance(value, list):
            continue
        if name in NUMBERS:
            section[name] = [
                number
                for number, (origin, layer) in enumerate(layers)
                if layer in (origin.get(name) or ())
            ]
        elif len(value) == depth and ("layer" in name or "block" in name or "pattern" in name):
            section[name] = [_entry(origin, name, layer, value) for origin, layer in layers]
    section.update(recounted(before, layers, keys[0]))


def _entry(origin: Mapping[str, Any], name: str, layer: int, fallback: list[Any]) -> Any:
    own = origin.get(name)
    listed = own if isinstance(own, list) and layer < len(own) else fallback
    return listed[layer] if layer < len(listed) else fallback[-1]
