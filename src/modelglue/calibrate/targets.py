"""Which parameter of the live model is which tensor of the checkpoint.

transformers renames, splits and fuses weights as it loads them (a checkpoint's experts become one
tensor a layer). Its own way back, the one that saves models, says what a parameter is called on
disk; and it is believed only where what comes out equals the stored tensor, value for value, and
where it does no more than move entries about, so that statistics can go the same way.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from modelglue.calibrate.gram import LINEAR, input_width
from modelglue.checkpoint.reader import Checkpoint

NOT_HELD = "the live model holds no parameter that is this tensor, value for value"
NOT_LINEAR = "the live model does not hold it as the weight of a linear layer"
SHARED = "its weight is more than a linear layer's (a head tied to the embedding)"


@dataclass(frozen=True)
class Target:
    """One parameter that gets a statistic, tied ones once.

    Attributes:
        lives: its names in the model, more than one if it is tied.
        names: the stored tensors that it is.
        parameter: the parameter itself.
        modules: for Gram matrices, the linear layers that multiply by it.
    """

    lives: tuple[str, ...]
    names: tuple[str, ...]
    parameter: nn.Parameter
    modules: tuple[nn.Module, ...] = ()

    @property
    def transposed(self) -> bool:
        """Whether it is stored [in, out], as GPT-2's layers are."""
        return any(isinstance(module, Conv1D) for module in self.modules)

    @property
    def nbytes(self) -> int:
        """Of its statistic, fp32."""
        if self.modules:
            return 4 * input_width(self.modules[0]) ** 2
        return 4 * self.parameter.numel()

    @property
    def memory(self) -> int:
        """What computing it takes: squares are added up beside the gradient."""
        gradient = 0 if self.modules else self.parameter.numel() * self.parameter.itemsize
        return self.nbytes + gradient


@dataclass(frozen=True)
class Targets:
    """What gets a statistic, and what does not: stored name → why."""

    found: tuple[Target, ...]
    skipped: Mapping[str, str]


def fisher_targets(model: Any, checkpoint: Checkpoint) -> Targets:
    """Every parameter, under the names of the checkpoint; buffers have no gradient."""
    found = tuple(_parameters(model, checkpoint))
    known = {name for target in found for name in target.names}
    return Targets(found, {name: NOT_HELD for name in checkpoint.tensors if name not in known})


def gram_targets(model: Any, checkpoint: Checkpoint) -> Targets:
    """Every linear layer's weight that is stored as it is held.

    Norms, biases and tables of embeddings have no Gram matrix and are not listed as skipped; a
    head that is also the embedding is.
    """
    linears: dict[int, list[nn.Module]] = {}
    others: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            weighs = isinstance(module, LINEAR) and parameter is module.weight
            (linears if weighs else others).setdefault(id(parameter), []).append(module)
    found: list[Target] = []
    skipped: dict[str, str] = {}
    seen: set[str] = set()
    for target in _parameters(model, checkpoint):
        seen.update(target.names)
        key, shape = id(target.parameter), tuple(target.parameter.shape)
        as_held = all(checkpoint.spec(name).shape == shape for name in target.names)
        tables = all(isinstance(module, nn.Embedding) for module in others.get(key, ()))
        if key in linears and key not in others and as_held:
            found.append(replace(target, modules=tuple(linears[key])))
        elif key in linears:
            skipped |= dict.fromkeys(target.names, SHARED if as_held else NOT_LINEAR)
        elif len(shape) > 1 and not tables:
            skipped |= dict.fromkeys(target.names, NOT_LINEAR)
    matrices = [name for name, spec in checkpoint.tensors.items() if len(spec.shape) > 1]
    skipped |= {name: NOT_HELD for name in matrices if name not in seen}
    return Targets(tuple(found), skipped)


def stored(
    model: Any, checkpoint: Checkpoint, lives: Iterable[str], tensor: Tensor
) -> dict[str, Tensor]:
    """A tensor of a live parameter's shape, in the form and under the names of the checkpoint."""
    prefix = f"{model.base_model_prefix}."
    found: dict[str, Tensor] = {}
    for live in lives:
        for name, value in revert_weight_conversion(model, {live: tensor}).items():
            # Stored from the model without its head (OpenAI's GPT-2), or loaded so.
            spelt = (name, name.removeprefix(prefix), prefix + name)
            found[next((n for n in spelt if n in checkpoint.tensors), name)] = value
    return found


def groups(targets: Iterable[Target], memory: int) -> list[list[Target]]:
    """Targets in order, in as few groups as fit into `memory` bytes; a larger one stands alone."""
    found: list[list[Target]] = []
    filled = 0
    for target in targets:
        if not found or filled + target.memory > memory:
            found.append([])
            filled = 0
        found[-1].append(target)
        filled += target.memory
    return found


def _parameters(model: Any, checkpoint: Checkpoint) -> Iterator[Target]:
    """Each parameter that is one or more of the stored tensors."""
    named: dict[int, dict[str, nn.Parameter]] = {}
    for live, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            named.setdefault(id(parameter), {})[live] = parameter
    for same in named.values():
        names = {live: _names(model, live, same[live], checkpoint) for live in same}
        lives = tuple(live for live in same if names[live])
        if lives:
            every = dict.fromkeys(name for live in lives for name in names[live])
            yield Target(lives, tuple(every), same[lives[0]])


def _names(model: Any, live: str, parameter: nn.Parameter, checkpoint: Checkpoint) -> list[str]:
    """The stored tensors that one live parameter is; none, if there is any doubt."""
    values = stored(model, checkpoint, [live], parameter.detach())
    for name, value in values.items():
        if name not in checkpoint.tensors or not _equal(checkpoint.read(name), value):
            return []
    # An operation other than moving entries about (an offset, a factor) would show on ones.
    ones = stored(model, checkpoint, [live], torch.ones_like(parameter))
    return list(values) if all(bool((value == 1).all()) for value in ones.values()) else []


def _equal(kept: Tensor, live: Tensor) -> bool:
    return kept.shape == live.shape and torch.equal(kept.to(live.dtype), live.cpu())
