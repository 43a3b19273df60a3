"""Configuration → MergePlan: every output tensor resolved and checked, no weight read yet.

Whatever can be wrong is wrong here. Two executors run the same plan: `stream` (to disk) and
`resident` (into a live module).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.checkpoint.naming import place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import open_checkpoint
from modelglue.checkpoint.spec import nbytes_of
from modelglue.checkpoint.tokenizer import same_vocabulary
from modelglue.errors import MergeError, NotMergeable, ShapeMismatch, UnsupportedCheckpoint
from modelglue.merge.config import MergeConfig
from modelglue.merge.method import METHODS

FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorPlan:
    """One output tensor.

    Attributes:
        sources: the tensor's name in each model, in the order of `MergePlan.models`; they differ
            from `name` where a tied head is read from the embedding.
        base: its name in the base, or None.
        parameters: every parameter of the method; per-model ones are tuples of n.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    base: str | None
    parameters: Mapping[str, Any]

    @property
    def numel(self) -> int:
        """Elements of the output tensor."""
        return math.prod(self.shape)

    @property
    def copied(self) -> bool:
        """Whether it is no weight (a mask, position ids) and is taken from the first model."""
        return self.dtype not in FLOATING


@dataclass(frozen=True)
class MergePlan:
    """A merge that can be carried out: complete, checked, printable.

    Attributes:
        models: the checkpoints to merge, n of them.
        base: the base checkpoint, or None.
        tensors: every output tensor, in the template's order.
        config: what was asked.
    """

    method: str
    models: tuple[Checkpoint, ...]
    base: Checkpoint | None
    tensors: tuple[TensorPlan, ...]
    config: MergeConfig

    @property
    def template(self) -> Checkpoint:
        """Gives the output its configuration, tokenizer and tensor names: base or first model."""
        return self.base or self.models[0]

    @property
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Output tensor name → (safetensors dtype, shape)."""
        return {tensor.name: (tensor.dtype, tensor.shape) for tensor in self.tensors}

    @property
    def bytes_to_read(self) -> int:
        """Weight bytes that an executor reads."""
        total = 0
        for tensor in self.tensors:
            total += sum(
                model.tensors[source].nbytes
                for model, source in zip(self.models, tensor.sources, strict=True)
            )
            if self.base is not None and tensor.base is not None and self.reads_base:
                total += self.base.tensors[tensor.base].nbytes
        return total

    @property
    def reads_base(self) -> bool:
        """Whether the method needs the base's weights."""
        return METHODS[self.method].needs_base

    def describe(self) -> dict[str, Any]:
        """The whole plan as plain data: every output tensor and where it comes from."""
        return {
            "method": self.method,
            "models": [model.name for model in self.models],
            "base": self.base.name if self.base else None,
            "bytes_to_read": self.bytes_to_read,
            "bytes_to_write": sum(nbytes_of(t.dtype, t.shape) for t in self.tensors),
            "tensors": [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "sources": list(tensor.sources),
                    "parameters": dict(tensor.parameters),
                }
                for tensor in self.tensors
            ],
        }

    def checked_parameters(self, weights: Sequence[float]) -> dict[str, Any]:
        """The configuration's parameters with other weights, one a model.

        Raises:
            MergeError: their number is wrong, or the method cannot use them (a sum of 0, say).
        """
        shared = tuple(map(float, weights))
        if len(shared) != len(self.models):
            raise MergeError(f"{len(shared)} weights for {len(self.models)} models")
        parameters = {**self.config.values(), "weight": shared}
        trouble = METHODS[self.method].check(parameters)
        if trouble:
            raise MergeError(f"parameters: {trouble}")
        return parameters


def make_plan(config: MergeConfig) -> MergePlan:
    """Open every checkpoint that the configuration names and resolve every tensor.

    Raises:
        CheckpointError: a checkpoint cannot be opened.
        NotMergeable: vocabularies or tensor names differ.
        ShapeMismatch: the same tensor has different shapes.
    """
    models = tuple(_open(entry.model, config.root) for entry in config.models)
    base = _open(config.base_model, config.root) if config.base_model else None
    return plan_of(config, models, base)


def _open(reference: str, root: Path) -> Checkpoint:
    """Beside the configuration, or where the command is run, as mergekit has it."""
    here = Path(reference.split("+")[0])
    beside = (root / here).exists()
    return open_checkpoint(reference, root=root if beside or not here.exists() else None)


def plan_of(
    config: MergeConfig, models: tuple[Checkpoint, ...], base: Checkpoint | None
) -> MergePlan:
    """The plan for checkpoints that are open already."""
    template = base or models[0]
    for other in models:
        if other is not template:
            _check_vocabulary(other, template)
    values = config.values()
    method = config.method
    tensors = tuple(
        _tensor_plan(name, template, models, base, config.dtype, values)
        for name in template.tensors
    )
    _refuse_extra_tensors(models, tensors, template)
    return MergePlan(method.name, models, base, tensors, config)


def _check_vocabulary(model: Checkpoint, template: Checkpoint) -> None:
    difference = same_vocabulary(model, template)
    if difference is not None:
        raise NotMergeable(
            f"{model.name} and {template.name} have different vocabularies: {difference}. Rows of "
            "their embeddings stand for different tokens, so merging them garbles both."
        )


def _tensor_plan(
    name: str,
    template: Checkpoint,
    models: tuple[Checkpoint, ...],
    base: Checkpoint | None,
    dtype: str | None,
    values: Mapping[str, Any],
) -> TensorPlan:
    spec = template.tensors[name]
    if spec.dtype not in FLOATING and place(name).role in ("attention", "mlp", "embedding", "head"):
        raise UnsupportedCheckpoint(
            f"{name}: {template.name} stores it as {spec.dtype}, which cannot be averaged. "
            "Convert the model to BF16 first."
        )
    sources = tuple(_source(name, spec.shape, model, template) for model in models)
    written = dtype if dtype and spec.dtype in FLOATING else spec.dtype
    return TensorPlan(name, written, spec.shape, sources, name if base else None, values)


def _source(name: str, shape: tuple[int, ...], model: Checkpoint, template: Checkpoint) -> str:
    source = name
    if name not in model.tensors:
        embedding = _embedding(model) if place(name).role == "head" and model.tied else None
        if embedding is None:
            raise NotMergeable(
                f"{name}: {template.name} has it, {model.name} lacks it. "
                "Only models of one architecture can be merged."
            )
        source = embedding
    found = model.tensors[source].shape
    if found != shape:
        raise ShapeMismatch(
            f"{name}: {model.name} has {list(found)}, {template.name} has {list(shape)}. "
            "Only tensors of one shape can be merged; leave this model out."
        )
    return source


def _embedding(model: Checkpoint) -> str | None:
    names = [name for name in model.tensors if place(name).role == "embedding"]
    return names[0] if len(names) == 1 else None


def _refuse_extra_tensors(
    models: tuple[Checkpoint, ...], tensors: tuple[TensorPlan, ...], template: Checkpoint
) -> None:
    planned = {tensor.name for tensor in tensors}
    for model in models:
        for name in model.tensors:
            if name in planned or (place(name).role == "head" and model.tied):
                continue
            raise NotMergeable(
                f"{name}: {model.name} has it, {template.name} lacks it; merging would lose it. "
                "Only models of one architecture can be merged."
            )
