"""A module's tensors under the names of its checkpoint's.

transformers renames and joins some tensors as it loads a model (the experts of a layer become one
tensor). Its own way back, the one that saves models, says which rows of a joined tensor are which
tensor of the checkpoint. Those rows are a view of the module's memory, so that a merge is written
into them as if they stood alone: nothing is loaded or held that a merge to disk would not read.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


def stored_parts(
    module: Any, state: dict[str, Tensor], names: Collection[str]
) -> dict[str, dict[str, Tensor]]:
    """By name in the module: its parts by name in the checkpoint, as views of the module's memory.

    Args:
        module: a model of transformers.
        state: its tensors.
        names: of the checkpoint's tensors. What the module has under its own name is that alone,
            and so is what cannot be told to be parts of the checkpoint.
    """
    return {
        name: {name: tensor} if name in names else _parts(module, name, tensor, names)
        for name, tensor in state.items()
    }


def _parts(module: Any, name: str, tensor: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    if not hasattr(module, "base_model_prefix") or not tensor.is_floating_point():
        return {name: tensor}
    # The number of each row in the place of its entries: what comes out says where it was.
    rows = (*tensor.shape[:-1], 1) if tensor.dim() > 1 else tuple(tensor.shape)
    width = tensor.shape[-1] if tensor.dim() > 1 else 1
    marked = torch.arange(math.prod(rows)).view(rows)
    found = {}
    prefix = f"{module.base_model_prefix}."
    for part, kept in revert_weight_conversion(module, {name: marked}).items():
        # Stored from the model without its head (OpenAI's GPT-2), or loaded so.
        spelt = (part, part.removeprefix(prefix), prefix + part)
        stored = next((one for one in spelt if one in names), None)
        flat = kept.reshape(-1)
        if stored is None or not flat.numel():
            return {name: tensor}
        first = int(flat[0])
        if not torch.equal(flat, torch.arange(first, first + len(flat))):
            return {name: tensor}  # rows that do not lie together are no view
        shape = (*kept.shape[:-1], width) if tensor.dim() > 1 else kept.shape
        entries = slice(first * width, (first + len(flat)) * width)
        found[stored] = tensor.view(-1)[entries].view(shape)
    return found
