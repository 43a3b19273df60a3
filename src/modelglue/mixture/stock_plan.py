"""Which bytes of which model make up a stock mixture."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.spec import torch_dtype
from modelglue.errors import MixtureError
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.stock_checks import require_fitting
from modelglue.mixture.stock_formats import DOWN, EMBEDDING, FFN, HEAD, NORM
from modelglue.mixture.stock_target import SHARED_ROWS, StockTarget


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a stored tensor.

    Attributes:
        model: whose.
        name: of the tensor.
        dtype: it is stored in.
        start: the first element.
        shape: of these rows.
    """

    model: Checkpoint
    name: str
    dtype: str
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of the mixture: parts one after the other, or values that no model has.

    Attributes:
        name, dtype, shape: as it will be stored.
        parts: what it is made of.
        values: of that shape and dtype, where there are no parts.
        routed: whether it is experts', of which `top_k` are at work at a time.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    values: Tensor | None = None
    routed: bool = False


def routed_parameters(outputs: Iterable[Output]) -> int:
    """How many of a mixture's parameters are experts'."""
    return sum(math.prod(output.shape) for output in outputs if output.routed)


@dataclass(frozen=True)
class StockPlan:
    """A stock mixture, complete but for its bytes.

    Attributes:
        target: its form.
        outputs: its tensors, in the order to be stored.
        config: its `config.json`.
    """

    target: StockTarget
    outputs: tuple[Output, ...]
    config: Mapping[str, Any]

    @property
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype and shape."""
        return {output.name: (output.dtype, output.shape) for output in self.outputs}


def make_stock_plan(
    dense: Checkpoint,
    experts: Mapping[str, Checkpoint],
    routers: Sequence[LinearRouter] | None,
    target: StockTarget,
) -> StockPlan:
    """Say where every byte of the mixture comes from.

    Args:
        dense: gives everything but the experts.
        experts: name → whose feed-forward parts it has.
        routers: one a mixed layer; None for zeros.
        target: of the dense model's configuration.

    Raises:
        MixtureError: experts, routers or the dense model's tensors don't fit; all that is wrong.
    """
    require_fitting(dense, experts, routers, target)
    config = target.output_config(list(experts))
    # A head that differs from the embedding counts, whatever the dense model's settings say.
    config["tie_word_embeddings"] = dense.tied
    builder = _Builder(dense, tuple(experts.values()), routers, target)
    return StockPlan(target, tuple(builder.outputs()), config)


@dataclass(frozen=True)
class _Builder:
    dense: Checkpoint
    experts: Sequence[Checkpoint]
    routers: Sequence[LinearRouter] | None
    target: StockTarget

    def outputs(self) -> Iterator[Output]:
        yield self._copied(EMBEDDING, EMBEDDING)
        for layer in range(self.target.layers):
            prefix = f"model.layers.{layer}."
            yield from self._shared(prefix)
            if layer not in self.target.mixed:
                yield from (self._joined(prefix, name, (name,), [self.dense]) for name in FFN)
                continue
            yield from self._experts(prefix)
            yield self._router(prefix, layer - self.target.kind.shared_layers)
            if self.target.format.shared:
                yield from self._silent(prefix)
        yield self._copied(NORM, NORM)
        if not self.dense.tied:
            yield self._copied(HEAD, HEAD)
        elif not self.target.format.tied:
            # Tied all the same; only llama.cpp, which wants this one to be there, sees two.
            yield self._copied(HEAD, EMBEDDING)

    def _copied(self, name: str, source: str) -> Output:
        spec = self.dense.spec(source)
        part = Part(self.dense, source, spec.dtype, 0, spec.shape)
        return Output(name, spec.dtype, spec.shape, (part,))

    def _shared(self, prefix: str) -> Iterator[Output]:
        for name in self.target.family.kept:
            yield self._joined(prefix, name, (name,), [self.dense])
        if self.target.zero_biases:
            for letter in "qkv":
                weight = self._part(self.dense, prefix, f"self_attn.{letter}_proj.weight")
                name = f"{prefix}self_attn.{letter}_proj.bias"
                yield _filled(name, weight.dtype, weight.shape[:1], 0)

    def _experts(self, prefix: str) -> Iterator[Output]:
        for name, matrices in self.target.format.experts.items():
            if "{}" not in name:
                whole = self._joined(prefix, name, matrices, self.experts, stacked=True)
                yield replace(whole, routed=True)
                continue
            for i, expert in enumerate(self.experts):
                own = self._joined(prefix, name.format(i), matrices, [expert])
                yield replace(own, routed=True)

    def _router(self, prefix: str, index: int) -> Output:
        dtype = self._part(self.dense, prefix, DOWN).dtype
        name = prefix + self.target.format.router
        shape = (len(self.experts), int(self.target.settings["hidden_size"]))
        if self.routers is None:
            return _filled(name, dtype, shape, 0)
        weight = self.routers[index].weight.detach().cpu().to(torch_dtype(dtype))
        if not bool(torch.isfinite(weight).all()):
            raise MixtureError(
                f"{name}: its weights are beyond {dtype}, in which the dense model is stored and "
                "a stock class keeps its routers; give the dense model in BF16 or F32"
            )
        return Output(name, dtype, shape, values=weight)

    def _silent(self, prefix: str) -> Iterator[Output]:
        """A shared expert that adds nothing to anything.

        Its own gate is not zero: llama.cpp computes σ(g) as silu(g) / g.
        """
        dtype = self._part(self.dense, prefix, DOWN).dtype
        width = int(self.target.settings["hidden_size"])
        for name, shape, value in (
            ("shared_expert.gate_proj", (SHARED_ROWS, width), 0),
            ("shared_expert.up_proj", (SHARED_ROWS, width), 0),
            ("shared_expert.down_proj", (width, SHARED_ROWS), 0),
            ("shared_expert_gate", (1, width), 1),
        ):
            yield _filled(f"{prefix}mlp.{name}.weight", dtype, shape, value)

    def _joined(
        self,
        prefix: str,
        name: str,
        matrices: tuple[str, ...],
        models: Sequence[Checkpoint],
        *,
        stacked: bool = False,
    ) -> Output:
        """Tensors of models one after the other, in the dense model's dtype."""
        parts = [self._part(model, prefix, matrix) for model in models for matrix in matrices]
        rows, rest = sum(part.shape[0] for part in parts), parts[0].shape[1:]
        shape = (len(models), rows // len(models), *rest) if stacked else (rows, *rest)
        dtype = self._part(self.dense, prefix, matrices[0]).dtype
        return Output(prefix + name, dtype, shape, tuple(parts))

    def _part(self, model: Checkpoint, prefix: str, name: str) -> Part:
        """Where a model has a layer's tensor."""
        stored, rows = self.target.family.find(name, self.target.settings)
        spec = model.spec(prefix + stored)
        first, last = rows or (0, spec.rows)
        width = spec.numel // max(spec.rows, 1)
        return Part(model, spec.name, spec.dtype, first * width, (last - first, *spec.shape[1:]))


def _filled(name: str, dtype: str, shape: tuple[int, ...], value: int) -> Output:
    return Output(name, dtype, shape, values=torch.full(shape, value, dtype=torch_dtype(dtype)))
