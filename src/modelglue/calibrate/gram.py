"""Gram matrices of the inputs of linear layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modelglue.evaluate.encoding import Tokens

LINEAR = (nn.Linear, Conv1D)


def input_width(linear: nn.Module) -> int:
    """The input dimension: the last of nn.Linear's [out, in], the first of Conv1D's [in, out]."""
    weight: Tensor = linear.get_parameter("weight")
    return int(weight.shape[0 if isinstance(linear, Conv1D) else 1])


def batches(sequences: Sequence[Tokens], size: int) -> list[list[Tokens]]:
    """Sequences of one length, at most `size` at once: no padding that would have to be left out.

    >>> batches([(1, 2), (3, 4, 5), (6, 7), (8, 9)], 2)
    [[(1, 2), (6, 7)], [(8, 9)], [(3, 4, 5)]]
    """
    found: list[list[Tokens]] = []
    for sequence in sorted(sequences, key=len):
        if not found or len(found[-1]) == size or len(found[-1][0]) != len(sequence):
            found.append([])
        found[-1].append(sequence)
    return found


def input_grams(
    model: Any,
    linears: Sequence[Sequence[nn.Module]],
    batched: Sequence[Sequence[Tokens]],
    *,
    step: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """G = XᵀX / tokens of the inputs of linear layers (Jin et al., arXiv 2212.09849).

    `tokens` are those of the text, for every layer alike. An expert that saw a tenth of them has a
    matrix a tenth as large, and so counts that much less against another model's.

    Args:
        model: a causal language model, in evaluation mode.
        linears: the modules that share one weight, for each weight.
        batched: sequences of one length in each batch.
        step: called after each batch.

    Returns:
        For each weight, fp32 [in, in]; zeros where no token reached any of its modules.
    """
    grams = [
        torch.zeros(width, width, device=model.device)
        for width in (input_width(modules[0]) for modules in linears)
    ]

    def adds_to(i: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def add(_module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given: Tensor = args[0] if args else next(iter(keywords.values()))
            rows = given.reshape(-1, given.shape[-1]).float()
            grams[i].addmm_(rows.T, rows)

        return add

    handles = [
        module.register_forward_pre_hook(adds_to(i), with_kwargs=True)
        for i, modules in enumerate(linears)
        for module in modules
    ]
    try:
        with torch.no_grad():
            for batch in batched:
                model(input_ids=torch.tensor(batch, device=model.device), use_cache=False)
                step()
    finally:
        for handle in handles:
            handle.remove()
    tokens = sum(len(sequence) for batch in batched for sequence in batch)
    return [gram.div_(tokens) for gram in grams]
