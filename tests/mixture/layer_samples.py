"""Dense models of many families, mixtures of them, and dense models assembled from chosen parts."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

import tiny
from modelglue.mixture import modeling_modelglue  # noqa: F401
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter, MLPRouter, Router
from modelglue.mixture.surgery import write_layers

WIDTH, LAYERS = 32, 2
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "phi3": {},
    "olmo2": {},
    "opt": {"ffn_dim": 64, "init_std": 0.15, "dropout": 0.0},
}
LOOSE = ("opt",)
"""Whose layers hold the matrices of their feed-forward part themselves, so that it is no module."""
# Rows of unlike lengths, padded on the left; longer than the windows.
PROMPTS = [
    [7, 9, 200, 31, 4, 55, 81, 81, 17],
    [3, 8, 100, 90],
    [60, 50, 40, 30, 20, 10, 5],
    [250, 13, 99, 100, 7, 44, 201, 90, 31, 12, 180],
]


def save(path: Path, family: str, *, seed: int = 0, **more: Any) -> Path:
    """Weights large enough that logits differ by more than rounding."""
    given = {"num_hidden_layers": LAYERS, "initializer_range": 0.15, **FAMILIES[family], **more}
    return tiny.save_model(path, seed=seed, model_type=family, **given)


def routers(kind: MixtureKind, experts: int, *, seed: int = 0, width: int = WIDTH) -> list[Router]:
    """Random ones, decided enough that rows go different ways."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    count = 1 if kind.level == "model" else LAYERS - kind.shared_layers
    if kind.router == "linear":
        return [LinearRouter(drawn(experts, width), drawn(experts) / 9) for _ in range(count)]
    return [
        MLPRouter(drawn(6, width), drawn(6) / 9, drawn(experts, 6), drawn(experts) / 9)
        for _ in range(count)
    ]


def mixture(
    out: Path, dense: Path, experts: list[Path], kind: MixtureKind, *, seed: int = 0
) -> Path:
    named = {f"e{i}": path for i, path in enumerate(experts)}
    return write_layers(out, named, dense, routers(kind, len(experts), seed=seed), kind=kind)


def load(path: Path, **more: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, **more).eval()


def batch(prompts: list[list[int]], *, side: str = "left") -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    pads = [[0] * (width - len(row)) for row in prompts]
    ones = [[1] * len(row) for row in prompts]
    if side == "left":
        ids, mask = ([p + r for p, r in zip(pads, rows)] for rows in (prompts, ones))
    else:
        ids, mask = ([r + p for p, r in zip(pads, rows)] for rows in (prompts, ones))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@torch.inference_mode()
def logits(model: Any, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
    """Of the tokens that are no padding."""
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    found = model(**inputs, position_ids=positions, **more).logits
    return found[mask.bool()]


@torch.inference_mode()
def written(model: Any, inputs: dict[str, torch.Tensor], **more: Any) -> list[list[int]]:
    """What each row goes on with."""
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(**inputs, **{**settings, **more})
    return found[:, inputs["input_ids"].shape[1] :].tolist()


@torch.inference_mode()
def routes(model: Any, prompt: list[int]) -> list[int]:
    """The expert of each router for one prompt."""
    found = model(**batch([prompt]), output_router_logits=True).router_logits
    return [int(one[0].argmax()) for one in found]


def assembled(dense: Path, experts: list[Path], kind: MixtureKind, chosen: list[int]) -> nn.Module:
    """The dense model with the chosen experts' parts in their places."""
    model, others = load(dense), [load(path) for path in experts]
    trunk, trunks = _trunk(model), [_trunk(other) for other in others]
    shared = kind.shared_layers
    if kind.level == "model":
        other = trunks[chosen[0]]
        for index in range(shared, LAYERS):
            trunk.layers[index] = other.layers[index]
        norm = "norm" if hasattr(trunk, "norm") else "final_layer_norm"
        setattr(trunk, norm, getattr(other, norm))
        model.lm_head = others[chosen[0]].lm_head
        return model
    for index, expert in enumerate(chosen, shared):
        if kind.level == "block":
            trunk.layers[index] = trunks[expert].layers[index]
        else:
            trunk.layers[index].mlp = trunks[expert].layers[index].mlp
    return model


def _trunk(model: Any) -> Any:
    """What holds the layers and the final norm."""
    return getattr(model.model, "decoder", model.model)
