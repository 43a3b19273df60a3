"""Numbers in a `config.json` that say which layers are of which kind, for layers in a new order.

"The first 3 are dense" and "every 6th attends to everything" are said by number. Where layers are
stacked anew each keeps its kind, and the numbers follow, if numbers can say it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelglue.errors import NotMergeable

Config = Mapping[str, Any]
Layers = Sequence[tuple[Config, int]]

FIRST = (
    "first_k_dense_replace",
    "num_dense_layers",
    "max_window_layers",
    "num_first_full_attention_layers",
)
"""So many layers at the beginning are of one kind."""

LAST = ("num_kv_shared_layers", "num_last_full_attention_layers")
"""So many layers at the end are."""

EVERY = (
    "decoder_sparse_step",
    "attn_layer_period",
    "expert_layer_period",
    "moe_layer_freq",
    "moe_layer_interval",
    "interleave_moe_layer_step",
    "no_rope_layer_interval",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "global_attn_every_n_layers",
    "full_attention_interval",
    "cross_layer_interval",
)
"""Each so manyth layer is."""

NUMBERS = (
    "mlp_only_layers",
    "cross_attention_layers",
    "moe_layers",
    "full_attn_idxs",
    "attn_layer_indices",
)
"""Lists of the numbers of layers of one kind."""

# A list with an entry a layer, where there is one, says it in the place of these.
_LISTED = {
    "max_window_layers": ("layer_types",),
    "sliding_window_pattern": ("layer_types",),
    "_sliding_window_pattern": ("layer_types",),
    "global_attn_every_n_layers": ("layer_types",),
    "full_attention_interval": ("layer_types",),
    "num_first_full_attention_layers": ("layer_types",),
    "num_last_full_attention_layers": ("layer_types",),
    "interleave_moe_layer_step": ("moe_layers",),
    "no_rope_layer_interval": ("no_rope_layers",),
    "first_k_dense_replace": ("mlp_layer_types",),
    "num_dense_layers": ("mlp_layer_types", "layer_types"),
    "moe_layer_freq": ("mlp_layer_types",),
}


def recounted(template: Config, layers: Layers, depth: str) -> dict[str, Any]:
    """The keys that change, with what they become.

    Args:
        template: the configuration that the output's starts from.
        layers: (configuration of its model, its number there) of every layer of the output.
        depth: the key that holds the number of layers.

    Raises:
        NotMergeable: what a key would have to say is not of its form; all such keys.
    """
    found = _unsaid(template, layers)
    problems: list[str] = []
    for key in (*FIRST, *LAST, *EVERY):
        value = template.get(key)
        if type(value) is not int:
            continue
        listed = any(isinstance(template.get(name), list) for name in _LISTED.get(key, ()))
        changed = _RULES[key](template, layers, key, depth)
        if changed is not None:
            found |= changed
        elif not listed and not _idle(template, key):
            problems.append(f"{key} is {value}")
    if problems:
        raise NotMergeable(
            f"slices: config.json says by number which layers are of which kind "
            f"({', '.join(problems)}), and the layers that are taken would be of other kinds in "
            "their new places. Take whole runs that keep the order, such as all first layers first."
        )
    nextn = template.get("num_nextn_predict_layers")
    if nextn and not any(layer >= int(origin.get(depth) or 0) for origin, layer in layers):
        found["num_nextn_predict_layers"] = 0
    return found


def _idle(config: Config, key: str) -> bool:
    return key == "max_window_layers" and not config.get("use_sliding_window")


def _first(template: Config, layers: Layers, key: str, depth: str) -> dict[str, Any] | None:
    kinds = [layer < int(_number(origin, template, key)) for origin, layer in layers]
    count = sum(kinds)
    return {key: count} if all(kinds[:count]) else None


def _last(template: Config, layers: Layers, key: str, depth: str) -> dict[str, Any] | None:
    kinds = [
        layer >= int(origin.get(depth) or 0) - int(_number(origin, template, key))
        for origin, layer in layers
    ]
    count = sum(kinds)
    return {key: count} if not any(kinds[: len(kinds) - count]) else None


def _every(template: Config, layers: Layers, key: str, depth: str) -> dict[str, Any] | None:
    period = int(template[key])
    same = all(
        _number(origin, template, key) == period
        and (period < 2 or layer % period == number % period)
        for number, (origin, layer) in enumerate(layers)
    )
    return {} if same else None


def _sparse_step(template: Config, layers: Layers, key: str, depth: str) -> dict[str, Any] | None:
    """Qwen's experts are in every so manyth layer, but for those that are listed."""
    if (kept := _every(template, layers, key, depth)) is not None:
        return kept
    dense = [
        number
        for number, (origin, layer) in enumerate(layers)
        if (layer + 1) % max(int(_number(origin, template, key)), 1)
        or layer in (origin.get("mlp_only_layers") or ())
    ]
    return {key: 1, "mlp_only_layers": dense}


def _number(origin: Config, template: Config, key: str) -> int:
    own = origin.get(key)
    return own if type(own) is int else int(template[key])


def _windows(template: Config, layers: Layers, key: str, depth: str) -> dict[str, Any] | None:
    """Every so manyth layer attends to everything; a list says it where the step is lost."""
    if (kept := _every(template, layers, key, depth)) is not None:
        return kept
    if isinstance(template.get("layer_types"), list):
        return None
    return {"layer_types": [_kind(layer, _number(o, template, key)) for o, layer in layers]}


def _unsaid(template: Config, layers: Layers) -> dict[str, Any]:
    """Families whose windows alternate though an older `config.json` does not say so."""
    period = _ALTERNATING.get(str(template.get("model_type")))
    said = ("layer_types", "sliding_window_pattern", "_sliding_window_pattern")
    if period is None or any(template.get(key) is not None for key in said):
        return {}
    kinds = [_kind(layer, period) for _, layer in layers]
    usual = [_kind(number, period) for number in range(len(layers))]
    return {} if kinds == usual else {"layer_types": kinds}


def _kind(layer: int, period: int) -> str:
    return "sliding_attention" if (layer + 1) % period else "full_attention"


_ALTERNATING = {"gemma2": 2, "gemma3_text": 6, "gemma3n_text": 5, "cohere2": 4, "olmo3": 4}

_Rule = Callable[[Config, Layers, str, str], dict[str, Any] | None]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(FIRST, _first),
    **dict.fromkeys(LAST, _last),
    **dict.fromkeys(EVERY, _every),
    "decoder_sparse_step": _sparse_step,
    "sliding_window_pattern": _windows,
    "_sliding_window_pattern": _windows,
}
