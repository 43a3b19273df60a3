"""Why two models cannot be merged, in words.

A merge adds up weights entry by entry, so the entries have to mean the same in both models: same
architecture, same shapes, same tokens at the same rows of the embedding, and the same settings
under which the weights were trained (heads, rotary positions, activation). What is checked is
what the folder says; whether the weights are alike is `similarity`'s question.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelglue.checkpoint.naming import head_and_embedding, place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.tokenizer import same_vocabulary
from modelglue.errors import CorruptCheckpoint


def incompatibility(
    a: Checkpoint, b: Checkpoint, *, names: tuple[str, str] | None = None
) -> str | None:
    """Why two models cannot be merged; None if they can.

    Checked in this order, and the first reason is given: architecture, number of layers, shapes,
    vocabulary, settings.

    Args:
        a: one model.
        b: the other.
        names: what to call them; by default their folders' names.

    Raises:
        CorruptCheckpoint: a configuration's rotary positions cannot be understood.
    """
    names = names or (a.name, b.name)
    return (
        _architecture(a, b)
        or _layers(a, b)
        or _tensors(a, b, names)
        or _vocabulary(a, b)
        or _embeddings(a, b, names)
        or _settings(a, b, names)
    )


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def architecture(config: Mapping[str, Any]) -> str:
    """What a configuration calls the model: "LlamaForCausalLM", else its model type."""
    names = config.get("architectures") or [config.get("model_type") or "unknown"]
    return str(names[0])


def _architecture(a: Checkpoint, b: Checkpoint) -> str | None:
    for key in ("model_type", "architectures"):
        ours, theirs = a.config.get(key), b.config.get(key)
        if ours and theirs and ours != theirs:
            return f"architecture: {_show(ours)} vs {_show(theirs)}"
    return None


def _layers(a: Checkpoint, b: Checkpoint) -> str | None:
    ours, theirs = (_layer_count(model) for model in (a, b))
    return None if ours == theirs else f"shape: {ours} layers vs {theirs}"


def _layer_count(model: Checkpoint) -> int:
    layers = [layer for name in model.tensors if (layer := place(name).layer) is not None]
    return max(layers, default=-1) + 1


def _tensors(a: Checkpoint, b: Checkpoint, names: tuple[str, str]) -> str | None:
    """The first tensor that one lacks or that has another shape; embeddings come later."""
    apart = _of_vocabulary(a, b)
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        if name in apart:
            continue
        if name not in a.tensors:
            return f"shape: {names[0]} has no {name} ({_shape(b, name)} in {names[1]})"
        if name not in b.tensors:
            return f"shape: {names[1]} has no {name} ({_shape(a, name)} in {names[0]})"
        if a.tensors[name].shape != b.tensors[name].shape:
            return _differs(a, b, names, name)
    return None


def _vocabulary(a: Checkpoint, b: Checkpoint) -> str | None:
    reason = same_vocabulary(a, b)
    return None if reason is None else f"vocabulary: {reason}"


def _embeddings(a: Checkpoint, b: Checkpoint, names: tuple[str, str]) -> str | None:
    """Embeddings and heads, whose rows are tokens: padded differently, or tied in one only."""
    apart = _of_vocabulary(a, b)
    for name in sorted(a.tensors.keys() & b.tensors.keys()):
        if name in apart and a.tensors[name].shape != b.tensors[name].shape:
            return _differs(a, b, names, name)
    if a.tied != b.tied:
        tied, free = names if a.tied else names[::-1]
        return f"shape: the head of {tied} is tied to its embedding, that of {free} is its own"
    return None


def _of_vocabulary(a: Checkpoint, b: Checkpoint) -> set[str | None]:
    """The heads and embeddings of both."""
    return {*head_and_embedding(a.tensors), *head_and_embedding(b.tensors)}


def _differs(a: Checkpoint, b: Checkpoint, names: tuple[str, str], name: str) -> str:
    return f"shape: {name} is {_shape(a, name)} in {names[0]}, {_shape(b, name)} in {names[1]}"


def _shape(model: Checkpoint, name: str) -> str:
    return str(list(model.tensors[name].shape))


def _settings(a: Checkpoint, b: Checkpoint, names: tuple[str, str]) -> str | None:
    """Settings without a tensor of their own that change what the weights mean."""
    ours, theirs = (_read_settings(model) for model in (a, b))
    for what, mine in ours.items():
        other = theirs[what]
        if None not in (mine, other) and mine != other:
            return f"{what}: {_show(mine)} in {names[0]}, {_show(other)} in {names[1]}"
    return None


# Configurations written before transformers 5 may leave the base of the rotary positions out; in
# these families it is then 10000. In others it is not known here, and not compared.
_THETA_10000 = ("llama", "mistral", "qwen2", "phi", "phi3", "gemma", "gemma2", "gpt_neox")


def _read_settings(model: Checkpoint) -> dict[str, Any]:
    """By what it is called; None where the configuration does not say."""
    config = language_config(model.config)
    heads = config.get("num_attention_heads", config.get("n_head"))
    hidden = config.get("hidden_size", config.get("n_embd"))
    width = config.get("head_dim")
    if width is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
        width = hidden // heads
    return {
        "attention heads": heads,
        "key-value heads": config.get("num_key_value_heads") or heads,
        "head width": width,
        "activation": config.get("hidden_act", config.get("activation_function")),
        **_rotary(config, model.path / "config.json"),
    }


def _rotary(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Rotary positions, as transformers 5 writes them or as older versions did."""
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise CorruptCheckpoint(f"{file}: {key} must be an object, and is {config[key]!r}")
    written = config.get("rope_parameters")
    if isinstance(written, Mapping) and any(isinstance(v, Mapping) for v in written.values()):
        return {"rope": dict(written), "rope theta": None, "rope scaling": None}
    scaling = dict(written or config.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or config.get("rope_theta")
    if theta is None and config.get("model_type") in _THETA_10000:
        theta = 10000
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    partial = scaling.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    if kind == "default":
        scaling = {}
    return {
        "rope": None,
        "rope theta": None if theta is None else _theta(theta, file),
        "rope scaling": {"type": kind, **scaling},
        "rotary fraction": partial,
    }


def _theta(value: Any, file: Path) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise CorruptCheckpoint(f"{file}: rope_theta must be a number, and is {value!r}") from None


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_show(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_show, value))
    return str(value)
