"""Whether a stock mixture-of-experts class of transformers computes what a dense family computes.

A stock class routes token by token with a linear router without bias, and its layers are otherwise
those of one dense family, to the last norm. So a mixture has a stock form where its family has
such a relative and uses no setting that the relative lacks; every other one has a checkpoint that
carries its own modelling file. Settings are compared as transformers reads them: what `config.json`
leaves out has another default in the two classes more often than not (the base of the rotary
positions is 10,000 in Llama and 1,000,000 in Mixtral).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from modelglue.errors import MixtureError
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.stock_formats import FAMILIES, FORMATS, HYBRID_CAVEAT, Family, Format

ELSEWHERE = "a checkpoint that carries its own modelling file can hold it"
"""What becomes of a mixture without a stock form."""

SHARED_ROWS = 32
"""Width of a shared expert that says nothing: what llama.cpp quantises comes in 32s."""

_NOT_CARRIED = ("architectures", "model_type", "auto_map", "_name_or_path", "transformers_version")
# Set by the format, or read another way by its class: not compared.
_OWN = {"model_type", "architectures", "transformers_version", "layer_types", "sliding_window"}


@dataclass(frozen=True)
class StockTarget:
    """The stock form of one dense model's mixtures.

    Attributes:
        family: of the dense model.
        format: of the mixture.
        kind: what mixture it is.
        config: the dense model's `config.json`.
    """

    family: Family
    format: Format
    kind: MixtureKind
    config: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """What transformers calls it: "mixtral", say."""
        return self.format.model_type

    @property
    def layers(self) -> int:
        """How many there are in all."""
        return int(self.settings["num_hidden_layers"])

    @property
    def mixed(self) -> range:
        """The layers that have experts."""
        return range(self.kind.shared_layers, self.layers)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The dense model's settings as transformers reads them, defaults filled in."""
        return _read(self.config)

    @property
    def zero_biases(self) -> bool:
        """Whether queries, keys and values get a bias of zeros, as the dense model has none.

        The format has a switch for it, which vLLM does not read: it would wait for the biases.
        """
        return self.format.biases and "self_attn.q_proj.bias" not in self.family.kept

    @property
    def caveats(self) -> tuple[str, ...]:
        """What readers other than transformers make of it."""
        hybrid = (HYBRID_CAVEAT,) if self.kind.shared_layers else ()
        return (*self.format.caveats, *hybrid)

    def output_config(self, experts: Sequence[str]) -> dict[str, Any]:
        """The mixture's `config.json`: the dense model's, every default of its class spelt out.

        Args:
            experts: their names.

        Raises:
            MixtureError: this version of transformers would read another model from it.
        """
        lost = self.family.neutral.keys()
        drop = {*_NOT_CARRIED, *lost, *(() if self.format.head_dim else ("head_dim",))}
        written: dict[str, Any] = {
            "architectures": [self.format.architecture],
            "model_type": self.model_type,
            **{key: value for key, value in self.config.items() if key not in drop},
        }
        own = self._own_settings(len(experts))
        written |= own
        filled = (_declared(self.model_type) | {"head_dim"}) - drop - own.keys()
        for key in filled & self.settings.keys():
            if written.get(key) is None:
                written[key] = self.settings[key]
        rope = self.settings.get("rope_parameters") or {}
        if not self.config.get("rope_parameters") and "rope_theta" in rope:
            # As older versions say it; `rope_scaling` of theirs would hide the new entry.
            written["rope_theta"] = rope["rope_theta"]
        written["modelglue"] = {
            "format": 1,
            "kind": self.kind.to_mapping(),
            "experts": list(experts),
        }
        read = _read(written)
        changed = [
            f"{key} {self.settings[key]!r} would be {read[key]!r}"
            for key in sorted(read.keys() & self.settings.keys() - _OWN - own.keys() - drop)
            if read[key] != self.settings[key]
        ]
        if changed:
            raise MixtureError(
                f"this version of transformers reads other settings as {self.model_type}: "
                f"{'; '.join(changed)}. {ELSEWHERE[0].upper()}{ELSEWHERE[1:]}."
            )
        return dict(sorted(written.items()))

    def _own_settings(self, experts: int) -> dict[str, Any]:
        """The settings that only a mixture has."""
        found: dict[str, Any] = {
            self.format.count: experts,
            "num_experts_per_tok": self.kind.top_k,
            "output_router_logits": False,
        }
        declared = _declared(self.model_type)
        inner = self.settings["intermediate_size"]
        if "norm_topk_prob" in declared:
            found["norm_topk_prob"] = True
        if "moe_intermediate_size" in declared:
            shared = list(range(self.kind.shared_layers))
            found |= {
                "moe_intermediate_size": inner,
                "decoder_sparse_step": 1,
                "mlp_only_layers": shared,
            }
        if self.format.shared:
            found["shared_expert_intermediate_size"] = SHARED_ROWS
        if self.format.biases:
            found["qkv_bias"] = True
        if not self.format.windows and "use_sliding_window" in declared:
            found |= {"use_sliding_window": False, "sliding_window": None}
            if "layer_types" in declared:
                found["layer_types"] = ["full_attention"] * self.layers
        return found


def stock_target(config: Mapping[str, Any], kind: MixtureKind) -> StockTarget | str:
    """The stock form of a dense model's mixtures of a kind, or why there is none.

    Args:
        config: the dense model's `config.json`.
        kind: of the mixture.

    Raises:
        MixtureError: transformers cannot read the configuration.
    """
    name = str(config.get("model_type"))
    reasons = list(_impossible(kind))
    family = FAMILIES.get(name)
    if family is None:
        reasons.append(
            f"no stock mixture-of-experts class computes what {name} models compute "
            f"(there is one for {', '.join(FAMILIES)})"
        )
    elif kind.shared_layers and family.hybrid is None:
        reasons.append(
            f"shared_layers: {kind.shared_layers}, and {family.target}, which holds mixtures of "
            f"{name} models, has experts in every layer; shared_layers: 0 has a stock form"
        )
    else:
        model_type = family.hybrid if kind.shared_layers and family.hybrid else family.target
        target = StockTarget(family, FORMATS[model_type], kind, config)
        reasons += _lacks(target)
        if not reasons:
            return target
    return f"{'; '.join(reasons)}. {ELSEWHERE[0].upper()}{ELSEWHERE[1:]}."


def _impossible(kind: MixtureKind) -> Iterator[str]:
    if kind.level != "ffn" or kind.router != "linear" or kind.input != "token":
        yield (
            "stock classes route tokens to feed-forward experts by linear routers (F-L-T); "
            f"{kind.short} is another kind"
        )


def _lacks(target: StockTarget) -> Iterator[str]:
    """What the dense model does and the format's class, or one of its readers, does not."""
    config, settings, form = target.config, target.settings, target.format
    kind, name = target.kind, target.model_type
    if kind.shared_layers >= target.layers:
        yield f"shared_layers: {kind.shared_layers} of {target.layers} layers leaves none to mix"
    for key in ("quantization_config", "auto_map"):
        if config.get(key):
            yield f"{key} is set: the weights are not what the family's class computes with"
    if settings["hidden_act"] not in ("silu", "swish"):
        yield f"hidden_act {settings['hidden_act']!r}: readers of {name} compute silu all the same"
    if settings.get("attention_bias"):
        yield f"attention_bias: readers of {name} leave a part of the biases out"
    for key, value in target.family.neutral.items():
        if value is not None and settings.get(key) != value and key != "attention_bias":
            yield f"{key} {settings.get(key)!r}, which {name} does not know"
    if not form.windows and _windowed(settings):
        yield f"a sliding window, which readers of {name} leave out"
    heads = settings["hidden_size"] // settings["num_attention_heads"]
    if not form.head_dim and (settings.get("head_dim") or heads) != heads:
        yield f"head_dim {settings['head_dim']}, which readers of {name} take to be {heads}"
    if settings["model_type"] == "phi3" and (rope := _rope_of_phi3(settings)):
        yield rope
    unknown = _unknown(target)
    if unknown:
        yield f"{', '.join(unknown)}: not known to {name}, nor to modelglue"


def _windowed(settings: Mapping[str, Any]) -> bool:
    if "sliding_attention" in (settings.get("layer_types") or ()):
        return True
    return bool(settings.get("sliding_window")) and settings.get("use_sliding_window", True)


def _rope_of_phi3(settings: Mapping[str, Any]) -> str | None:
    rope = settings["rope_parameters"]
    if rope.get("rope_type") != "default" or rope.get("partial_rotary_factor", 1) != 1:
        return "Phi-3's own rotary positions (longrope, or a part of each head)"
    return None


def _unknown(target: StockTarget) -> list[str]:
    """Settings that a later transformers may have given the dense class, and not the format's."""
    known = _declared(target.model_type) | target.family.neutral.keys() | {"head_dim"}
    dense = _declared(target.settings["model_type"])
    plain = CONFIG_MAPPING[target.settings["model_type"]]
    return sorted(
        key for key in dense - known if target.settings.get(key) != getattr(plain, key, None)
    )


def _declared(model_type: str) -> set[str]:
    """The settings of a class, without those that any model has."""
    classes = CONFIG_MAPPING[model_type].__mro__
    own = classes[: classes.index(PreTrainedConfig)]
    return {name for kind in own for name in vars(kind).get("__annotations__", ())}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as transformers reads it, which writes into what it is given."""
    try:
        found = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(dict(config)))
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise MixtureError(
            f"transformers cannot read the configuration of this {config['model_type']} model: "
            f"{error}"
        ) from None
    read: dict[str, Any] = found.to_dict()
    return read
