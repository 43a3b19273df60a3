"""What keeps models from being mixed layer by layer: all of it, before a weight is read.

Every message says which kind of mixture the models could make instead.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.settings import language_config
from modelglue.checkpoint.tokenizer import same_vocabulary
from modelglue.mixture.notation import MixtureKind, impossible

BUNDLE = "use M-L-S with shared_layers: 0, a bundle of whole models"
"""What takes models of any kind."""

# What layers do not depend on.
_BESIDE_LAYERS = {
    *("architectures", "dtype", "torch_dtype", "transformers_version", "auto_map", "use_cache"),
    *("_name_or_path", "name_or_path", "initializer_range", "vocab_size", "tie_word_embeddings"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "_attn_implementation", "modelglue"),
}
# What a feed-forward module is made of.
_FEED_FORWARD = ("intermediate_size", "hidden_act", "hidden_activation", "mlp_bias")


def mixing_problems(
    dense: Checkpoint, experts: Mapping[str, Checkpoint], kind: MixtureKind
) -> list[str]:
    """Why these models make no mixture of that kind in one checkpoint, each with a way out."""
    problems = list(_kind_problems(len(experts), kind))
    ours = settings(dense)
    if isinstance(ours, str):
        return [*problems, f"the dense model: {ours}"]
    problems += [f"the dense model: {what}" for what in _states(ours, kind)]
    layers = ours["num_hidden_layers"]
    if kind.shared_layers >= layers:
        problems.append(
            f"shared_layers: {kind.shared_layers} of {layers} layers leave none to be mixed; use "
            f"at most {layers - 1}"
        )
    for name, expert in experts.items():
        theirs = settings(expert)
        if isinstance(theirs, str):
            problems.append(f"expert {name!r}: {theirs}")
            continue
        found = [*_misfits(ours, theirs, kind), *_states(theirs, kind)]
        problems += [f"expert {name!r}: {what}" for what in found]
        if reason := same_vocabulary(dense, expert):
            problems.append(
                f"expert {name!r}: its tokens are not the dense model's ({reason}); {BUNDLE}"
            )
    return problems


def settings(model: Checkpoint) -> dict[str, Any] | str:
    """A language model's configuration as transformers reads it, defaults filled in.

    Of a model that reads images too, say, that is the part that its text goes through.

    Returns:
        The settings, or why it can't be mixed.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = language_config(model.config)
    family = config.get("model_type")
    if "auto_map" in model.config:
        return f"it needs code of its own ({model.config['auto_map']}); {BUNDLE}"
    if config.get("quantization_config") or model.config.get("quantization_config"):
        return "its weights are quantised; give the model that they were made of"
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"transformers knows no language model of type {family!r}; {BUNDLE}"
    try:
        found: dict[str, Any] = AutoConfig.for_model(**config).to_dict()
    except (ValueError, TypeError, LookupError, AttributeError, StrictDataclassError) as error:
        return f"transformers can't read its config.json: {error}"
    lacking = [key for key in ("hidden_size", "num_hidden_layers") if not found.get(key)]
    if lacking:
        return f"its config.json says nothing of {' and '.join(lacking)}; {BUNDLE}"
    if found.get("num_kv_shared_layers"):
        return f"its layers use one another's keys and values; {BUNDLE}"
    return found


def computes_alike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether layers of both are called in the same way, with the same masks and positions."""
    keys = (ours.keys() | theirs.keys()) - _BESIDE_LAYERS
    return all(ours.get(key) == theirs.get(key) for key in keys)


def _kind_problems(experts: int, kind: MixtureKind) -> Iterator[str]:
    if reason := impossible(kind, experts=experts):
        yield reason
    if experts < 2:
        yield f"a mixture needs two experts or more, and there are {experts}"
    if kind.level != "model":
        return
    if kind.shared_layers == 0:
        yield "whole models that share no layer are kept as they are, in a bundle; use `mix`"
    if kind.top_k > 1:
        yield (
            f"top_k: {kind.top_k} of whole models with shared layers would run all their layers "
            "side by side; use top_k: 1, or shared_layers: 0 for a mixture of what they say"
        )


def _states(settings: Mapping[str, Any], kind: MixtureKind) -> Iterator[str]:
    """Routes of samples lie in the cache, beside keys and values; other states have no room."""
    from transformers import AutoConfig, DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if kind.input == "token":
        return
    slots = DynamicCache(config=AutoConfig.for_model(**settings)).layers
    odd = {type(slot) for slot in slots} - {DynamicLayer, DynamicSlidingWindowLayer}
    if odd:
        near = "use F-L-T (input: token), or" if kind.level == "ffn" else "use"
        yield (
            "some of its layers remember more than keys and values (they are convolutions or "
            f"state spaces), beside which no route of a sample can be kept; {near} "
            f"{BUNDLE.removeprefix('use ')}"
        )


def _misfits(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], kind: MixtureKind
) -> Iterator[str]:
    whole = [key for key in ("hidden_size", "num_hidden_layers") if ours[key] != theirs[key]]
    for key in whole:
        yield f"{key} is {theirs[key]}, and the dense model's {ours[key]}; {BUNDLE}"
    if whole or kind.level == "block":
        return
    near = "use B-L-S, whole layers" if kind.level == "ffn" else BUNDLE
    if ours["model_type"] != theirs["model_type"]:
        yield f"it is a {theirs['model_type']}, and the dense model a {ours['model_type']}; {near}"
    elif kind.level == "ffn":
        for key in _FEED_FORWARD:
            if ours.get(key) != theirs.get(key):
                yield f"{key} is {theirs.get(key)}, and the dense model's {ours.get(key)}; {near}"
    elif not computes_alike(ours, theirs):
        keys = sorted((ours.keys() | theirs.keys()) - _BESIDE_LAYERS)
        other = next(key for key in keys if ours.get(key) != theirs.get(key))
        yield f"{other} is {theirs.get(other)}, and the dense model's {ours.get(other)}; {near}"
