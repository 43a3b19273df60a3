"""Dense models of every family that has a stock mixture, and the same mixture computed naively."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

import tiny
from modelglue.mixture.notation import MixtureKind

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}


@dataclass(frozen=True)
class Case:
    """A dense model, and what its mixture is."""

    name: str
    family: str
    target: str
    shared_layers: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)

    def kind(self, top_k: int = 2) -> MixtureKind:
        return MixtureKind("ffn", "linear", "token", top_k, self.shared_layers)

    def save(self, path: Path, *, seed: int = 0, **more: Any) -> Path:
        # Weights large enough for logits of some size, so that 1e-5 says something.
        given = {"num_hidden_layers": 3, "initializer_range": 0.15, **self.overrides, **more}
        return tiny.save_model(path, seed=seed, model_type=self.family, **given)


CASES = [
    Case("llama", "llama", "mixtral"),
    Case("llama-tied", "llama", "mixtral", overrides={"tie_word_embeddings": True}),
    Case("llama-rope", "llama", "mixtral", overrides={"rope_parameters": LLAMA3}),
    Case("llama-wide-heads", "llama", "mixtral", overrides={"head_dim": 16}),
    Case("mistral", "mistral", "mixtral", overrides={"sliding_window": None}),
    Case("mistral-window", "mistral", "mixtral", overrides={"sliding_window": 6}),
    Case("phi3", "phi3", "mixtral", overrides={"sliding_window": 7}),
    Case("qwen2", "qwen2", "qwen2_moe"),
    Case("qwen2-tied", "qwen2", "qwen2_moe", overrides={"tie_word_embeddings": True}),
    Case("qwen3", "qwen3", "qwen3_moe", overrides={"head_dim": 16, "tie_word_embeddings": True}),
    Case("granite", "granite", "granitemoe", overrides=GRANITE),
    Case("olmo2", "olmo2", "flex_olmo"),
    Case("llama-hybrid", "llama", "qwen2_moe", shared_layers=1),
    Case("mistral-hybrid", "mistral", "qwen2_moe", 2, {"sliding_window": None}),
    Case("phi3-hybrid", "phi3", "qwen2_moe", shared_layers=1),
    Case("qwen2-hybrid", "qwen2", "qwen2_moe", 1, {"tie_word_embeddings": True}),
    Case("qwen3-hybrid", "qwen3", "qwen3_moe", 2, {"head_dim": 8}),
]
BY_NAME = {case.name: case for case in CASES}


def load(path: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(path).eval()


def steady(path: Path) -> Path:
    """Make the first entry of every hidden state positive, so that a router can be forced."""
    model = load(path)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 6.0
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight[0] = 1.0
    model.save_pretrained(path)
    return path


class Naive(nn.Module):
    """A mixture of feed-forward modules, token by token in plain loops."""

    def __init__(self, experts: list[nn.Module], weight: torch.Tensor, top_k: int) -> None:
        super().__init__()
        self.experts, self.weight, self.top_k = nn.ModuleList(experts), weight, top_k

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(states)
        for row in range(states.shape[0]):
            for at, state in enumerate(states[row]):
                chances = (self.weight @ state).softmax(dim=0)
                best = chances.argsort(descending=True)[: self.top_k].tolist()
                total = sum(chances[i] for i in best)
                out[row, at] = sum(chances[i] / total * self.experts[i](state) for i in best)
        return out


def naive_mixture(
    dense: Path, experts: list[Path], routers: list[torch.Tensor], kind: MixtureKind
) -> nn.Module:
    """The dense model with loops over the experts' own modules for its feed-forward parts."""
    model = load(dense)
    others = [load(path) for path in experts]
    for layer, weight in enumerate(routers, kind.shared_layers):
        modules = [other.model.layers[layer].mlp for other in others]
        model.model.layers[layer].mlp = Naive(modules, weight, kind.top_k)
    return model


BATCH = torch.tensor(
    [[0, 0, 0, 0, 7, 9, 200, 31, 4, 55, 81, 81], [3, 8, 100, 90, 80, 70, 60, 50, 40, 30, 20, 10]]
)
MASK = (BATCH != 0).long()


def logits(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    positions = None
    if mask is not None:
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    return found if mask is None else found[mask.bool()]


def written(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, *, use_cache: bool
) -> list[list[int]]:
    """What each row goes on with, greedily."""
    with torch.inference_mode():
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=10,
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=0,
            eos_token_id=None,
        )
    return found[:, ids.shape[1] :].tolist()
