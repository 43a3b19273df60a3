"""What `config.json` says of how a model computes, and where two models differ in it.

Some settings decide what the entries of a tensor mean: into how many heads the rows of a
projection fall. Under others the same entries are put to another use: rotary positions, the
activation. Keys that a configuration leaves out are not compared.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import CorruptCheckpoint


@dataclass(frozen=True)
class Difference:
    """A setting in which two models differ.

    Attributes:
        what: it is called.
        key: of `config.json`.
        ours, theirs: its values.
        of_entries: whether it decides what the entries of tensors mean.
    """

    what: str
    key: str
    ours: Any
    theirs: Any
    of_entries: bool


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def architecture(config: Mapping[str, Any]) -> str:
    """What a configuration calls the model: "LlamaForCausalLM", else its model type."""
    names = config.get("architectures") or [config.get("model_type") or "unknown"]
    return str(names[0])


def architecture_differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[Difference]:
    """Where two configurations name other architectures."""
    for key in ("model_type", "architectures"):
        mine, other = ours.get(key), theirs.get(key)
        if mine and other and mine != other:
            yield Difference(key, key, mine, other, of_entries=True)


def setting_differences(a: Checkpoint, b: Checkpoint) -> Iterator[Difference]:
    """Where the settings of two models of one architecture differ.

    Raises:
        CorruptCheckpoint: a configuration's rotary positions cannot be understood.
    """
    ours, theirs = (_read_settings(model) for model in (a, b))
    for what, mine in ours.items():
        other = theirs.get(what)
        if None not in (mine, other) and mine != other:
            key = _ENTRIES.get(what)
            yield Difference(what, key or what, mine, other, of_entries=key is not None)


def further_differences(a: Checkpoint, b: Checkpoint) -> Iterator[Difference]:
    """Other numbers of heads, and what else is computed with the weights."""
    ours, theirs = (language_config(model.config) for model in (a, b))
    heads = [key for key in ours if "head" in key and key not in _HEADS]
    for key in (*heads, *_MINOR):
        mine, other = ours.get(key), theirs.get(key)
        numbers = type(mine) is int and type(other) is int
        if None not in (mine, other) and mine != other and (numbers or key in _MINOR):
            yield Difference(key, key, mine, other, of_entries=key not in _MINOR)


def shown(value: Any) -> str:
    """A setting's value for a message."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return str(value)


_ENTRIES = {
    "attention heads": "num_attention_heads",
    "key-value heads": "num_key_value_heads",
    "head width": "head_dim",
}

# What is compared as one of these, whatever a family calls it.
_HEADS = ("num_attention_heads", "n_head", "num_key_value_heads", "head_dim")

_MINOR = (
    "sliding_window",
    "use_sliding_window",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "num_experts_per_tok",
    "norm_topk_prob",
    "routed_scaling_factor",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "logit_scale",
    "logits_scaling",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
)

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
