"""The diagonal Fisher information of parameters, from squared gradients of the log-likelihood."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from modelglue.evaluate.encoding import Tokens

Labels = Literal["model", "text"]
_ROWS = 256


def diagonal_fisher(
    model: Any,
    parameters: Sequence[nn.Parameter],
    sequences: Sequence[Tokens],
    *,
    labels: Labels = "model",
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """The Fisher information per predicted token (Matena and Raffel, arXiv 2111.09832).

    F = Σₛ (∇ Σₜ log p(yₛₜ | xₛ,<ₜ))² / Σₛ Tₛ over sequences s, each with Tₛ predicted tokens. With
    labels drawn from the model (one a place, given the text before it) the gradients of different
    places have mean zero and are independent, so the cross terms vanish in expectation and this
    estimates the mean of the tokens' own Fisher information. With the text's own tokens it is the
    empirical Fisher, which does not (Kunstner et al., arXiv 1905.12558).

    Only `parameters` ask for gradients, so what lies below them is not differentiated.

    Args:
        model: a causal language model, in evaluation mode.
        parameters: of the model; no other parameter gets a gradient.
        sequences: each one forward and backward pass, alone: gradients are squared per sequence.
        labels: "model" draws each label y from p(· | text before); "text" takes the text's token.
        seed: of the draws, keyed by (seed, index of the sequence).
        step: called after each sequence.

    Returns:
        For each parameter, fp32 of its shape; zeros where the text never reached it.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    try:
        for index, sequence in enumerate(sequences):
            loss = _negative_log_likelihood(model, sequence, labels, (seed, index))
            for total, gradient in zip(totals, _gradients(loss, parameters), strict=True):
                if gradient is not None:
                    dense = gradient.float()
                    total.addcmul_(dense, dense)
            step()
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
    predicted = sum(len(sequence) - 1 for sequence in sequences)
    return [total.div_(predicted) for total in totals]


def _negative_log_likelihood(
    model: Any, sequence: Tokens, labels: Labels, key: tuple[int, int]
) -> Tensor:
    ids = torch.tensor([sequence], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    targets = ids[0, 1:] if labels == "text" else draw(logits.detach(), key)
    return cross_entropy(logits, targets, reduction="sum")


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    if not loss.requires_grad:  # nothing of this group took part (an expert without tokens)
        return [None] * len(parameters)
    return torch.autograd.grad(loss, parameters, allow_unused=True)


def draw(logits: Tensor, key: tuple[int, int]) -> Tensor:
    """One label a row, drawn from softmax(logits): [rows, vocabulary] → [rows].

    The uniform numbers depend on the key alone, so a label is the same on every device, but where
    rounding moves a bound over its number.
    """
    number = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1
    uniform = torch.rand(len(logits), generator=torch.Generator().manual_seed(number))
    drawn = []
    for start in range(0, len(logits), _ROWS):
        bounds = logits[start : start + _ROWS].softmax(-1).cumsum(-1)
        at = uniform[start : start + _ROWS, None].to(bounds.device) * bounds[:, -1:]
        drawn.append(torch.searchsorted(bounds, at, right=True)[:, 0])
    return torch.cat(drawn).clamp_(max=logits.shape[-1] - 1)
