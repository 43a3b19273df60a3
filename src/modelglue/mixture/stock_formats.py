"""How dense families and stock mixture-of-experts classes name what they store.

A family's tensors are known here by the names that Llama gives them; `Family.where` says where
another family keeps the same rows. A format says under which names a stock class wants the experts:
the classic ones, expert by expert, which transformers fuses when it loads them and which vLLM and
llama.cpp read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Rows = tuple[int, int]
"""From the first row to before the last."""

GATE, UP, DOWN = "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"
FFN = (GATE, UP, DOWN)

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

_ATTENTION = tuple(f"self_attn.{name}_proj.weight" for name in "qkvo")
_BIASES = tuple(f"self_attn.{name}_proj.bias" for name in "qkv")
_HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
_BEFORE = ("input_layernorm.weight", "post_attention_layernorm.weight")
_AFTER = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")


@dataclass(frozen=True)
class Family:
    """Dense models of one `model_type`.

    Attributes:
        kept: what a layer has beside its feed-forward part, which a mixture takes as it is.
        target: the format that holds its mixtures.
        hybrid: the format that holds those whose bottom layers are shared, where one can.
        neutral: settings that the target lacks, with the value at which they do nothing; None for
            any value.
        where: finds a tensor's rows in a file; None where every tensor has its Llama name.
    """

    kept: tuple[str, ...]
    target: str
    hybrid: str | None = None
    neutral: Mapping[str, Any] = field(default_factory=dict)
    where: Callable[[str, Mapping[str, Any]], tuple[str, Rows | None]] | None = None

    def find(self, name: str, config: Mapping[str, Any]) -> tuple[str, Rows | None]:
        """Where a layer's tensor is stored: its name, and its rows if it is a part of that."""
        return (name, None) if self.where is None else self.where(name, config)


@dataclass(frozen=True)
class Format:
    """What a stock class is called, and how it stores experts.

    Attributes:
        count: the setting that says how many experts there are.
        router: the name of the router's weights within a layer.
        experts: name within a layer → the matrices of the feed-forward part that it holds, one
            after the other; "{}" stands for the expert's number, and without it the experts are
            stacked in one tensor [experts, rows, columns].
        shared: whether an expert that sees every token is compulsory.
        biases: whether queries, keys and values have a bias.
        windows: whether every reader heeds a sliding window.
        head_dim: whether every reader takes a head's width from the configuration.
        tied: whether every reader knows a head that is the embedding.
        caveats: what readers other than transformers make of it.
    """

    model_type: str
    architecture: str
    count: str
    router: str
    experts: Mapping[str, tuple[str, ...]]
    shared: bool = False
    biases: bool = False
    windows: bool = False
    head_dim: bool = False
    tied: bool = True
    caveats: tuple[str, ...] = ()


def _phi3(name: str, config: Mapping[str, Any]) -> tuple[str, Rows | None]:
    """Phi-3 stores queries, keys and values in one tensor, and gate and up in another."""
    inner = int(config["intermediate_size"])
    width = int(config["hidden_size"]) // int(config["num_attention_heads"])
    queries = width * int(config["num_attention_heads"])
    keys = width * int(config["num_key_value_heads"])
    qkv, gate_up = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
    parts: dict[str, tuple[str, Rows]] = {
        "self_attn.q_proj.weight": (qkv, (0, queries)),
        "self_attn.k_proj.weight": (qkv, (queries, queries + keys)),
        "self_attn.v_proj.weight": (qkv, (queries + keys, queries + 2 * keys)),
        GATE: (gate_up, (0, inner)),
        UP: (gate_up, (inner, 2 * inner)),
    }
    return parts.get(name, (name, None))


_NO_BIASES = {"attention_bias": False, "mlp_bias": False}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        kept=(*_ATTENTION, *_BEFORE),
        target="mixtral",
        hybrid="qwen2_moe",
        neutral={**_NO_BIASES, "pretraining_tp": None},
    ),
    "mistral": Family(kept=(*_ATTENTION, *_BEFORE), target="mixtral", hybrid="qwen2_moe"),
    "phi3": Family(
        kept=(*_ATTENTION, *_BEFORE),
        target="mixtral",
        hybrid="qwen2_moe",
        neutral={"resid_pdrop": 0, "embd_pdrop": 0, "original_max_position_embeddings": None},
        where=_phi3,
    ),
    "qwen2": Family(kept=(*_ATTENTION, *_BIASES, *_BEFORE), target="qwen2_moe", hybrid="qwen2_moe"),
    "qwen3": Family(
        kept=(*_ATTENTION, *_HEAD_NORMS, *_BEFORE),
        target="qwen3_moe",
        hybrid="qwen3_moe",
        neutral={"max_window_layers": None, "layer_types": None},
    ),
    "granite": Family(
        kept=(*_ATTENTION, *_BEFORE), target="granitemoe", neutral={"mlp_bias": False}
    ),
    "olmo2": Family(kept=(*_ATTENTION, *_HEAD_NORMS, *_AFTER), target="flex_olmo"),
}


def _each(prefix: str, gate: str, up: str, down: str) -> Mapping[str, tuple[str, ...]]:
    return {
        f"{prefix}.{{}}.{gate}.weight": (GATE,),
        f"{prefix}.{{}}.{up}.weight": (UP,),
        f"{prefix}.{{}}.{down}.weight": (DOWN,),
    }


_BY_NAME = _each("mlp.experts", "gate_proj", "up_proj", "down_proj")

FORMATS: Mapping[str, Format] = {
    found.model_type: found
    for found in (
        Format(
            "mixtral",
            "MixtralForCausalLM",
            count="num_local_experts",
            router="block_sparse_moe.gate.weight",
            experts=_each("block_sparse_moe.experts", "w1", "w3", "w2"),
            windows=True,
            head_dim=True,
        ),
        Format(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            count="num_experts",
            router="mlp.gate.weight",
            experts=_BY_NAME,
            shared=True,
            biases=True,
            tied=False,
            caveats=(
                "llama.cpp does not renormalise the weights of a Qwen2-MoE's experts: it computes "
                "the same as transformers and vLLM only where every expert answers "
                "(top_k = experts)",
            ),
        ),
        Format(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            count="num_experts",
            router="mlp.gate.weight",
            experts=_BY_NAME,
            head_dim=True,
        ),
        Format(
            "granitemoe",
            "GraniteMoeForCausalLM",
            count="num_local_experts",
            router="block_sparse_moe.router.layer.weight",
            experts={
                "block_sparse_moe.input_linear.weight": (GATE, UP),
                "block_sparse_moe.output_linear.weight": (DOWN,),
            },
        ),
        Format(
            "flex_olmo",
            "FlexOlmoForCausalLM",
            count="num_experts",
            router="mlp.gate.weight",
            experts=_BY_NAME,
            caveats=(
                "vLLM does not renormalise the weights of a FlexOlmo's experts; the norm after "
                "them takes their scale out again",
                "llama.cpp does not read FlexOlmo",
            ),
        ),
    )
}
HYBRID_CAVEAT = (
    "llama.cpp reads no mixture with dense layers at the bottom; transformers and vLLM do"
)
