"""Sparse experts on a processor: each on its rows, and little else.

The loops of transformers (`grouped_mm`, `eager`) are made for many rows: they count, sort and
scatter them in some thirty small operations a layer, for which a decoding step of a small model
waits longer than for its products. Here the routes are read once, and rows that all go to one
expert are not moved at all.
"""

from typing import Any

import torch
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

BY_EXPERT = "modelglue_by_expert"
"""The loop's name, for `set_experts_implementation` of transformers."""
_DEFAULT = "grouped_mm"


def by_expert(
    experts: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What the chosen experts make of each row, weighted and added up.

    Args:
        experts: of transformers: gates and ups stacked and concatenated, without biases.
        hidden: (rows, hidden size).
        index: (rows, experts per token); `num_experts` stands for none.
        weights: likewise.

    Returns:
        (rows, hidden size)
    """
    used = {expert for row in index.tolist() for expert in row}
    if len(used) == 1 and index.shape[1] == 1 and experts.num_experts not in used:
        return _answer(experts, hidden, used.pop()) * weights.to(hidden.dtype)
    found = torch.zeros_like(hidden)
    for expert in sorted(used - {experts.num_experts}):
        rows, places = torch.where(index == expert)
        answer = _answer(experts, hidden[rows], expert) * weights[rows, places, None]
        found.index_add_(0, rows, answer.to(hidden.dtype))
    return found


def use_by_expert(module: Any) -> None:
    """Let a model on a processor run its experts so, if it has such and nobody chose otherwise."""
    stacks = [part for part in module.modules() if hasattr(part, "_apply_gate")]
    if (
        stacks
        and module.device.type == "cpu"
        and module.config._experts_implementation == _DEFAULT
        and all(map(_is_plain, stacks))
    ):
        module.set_experts_implementation(BY_EXPERT)


def _answer(experts: Any, hidden: torch.Tensor, expert: int) -> torch.Tensor:
    gated: torch.Tensor = experts._apply_gate(linear(hidden, experts.gate_up_proj[expert]))
    return linear(gated, experts.down_proj[expert])


def _is_plain(experts: Any) -> bool:
    others = ("has_bias", "is_transposed", "has_post_expert_norm")
    return experts.has_gate and not any(getattr(experts, other, False) for other in others)


ALL_EXPERTS_FUNCTIONS.register(BY_EXPERT, by_expert)
