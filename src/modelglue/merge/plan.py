"""Configuration → MergePlan: every output tensor resolved and checked, no weight read yet.

Whatever can be wrong is wrong here. Two executors run the same plan: `stream` (to disk) and
`resident` (into a live module).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelglue.checkpoint.naming import place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import open_checkpoint
from modelglue.checkpoint.spec import TensorSpec, nbytes_of
from modelglue.checkpoint.tokenizer import same_vocabulary
from modelglue.errors import MergeError, NotMergeable, ShapeMismatch, UnsupportedCheckpoint
from modelglue.merge.config import MergeConfig
from modelglue.merge.method import METHODS, Method

if TYPE_CHECKING:
    from modelglue.merge.rows import RowUnion

FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of one of the plan's checkpoints.

    Attributes:
        model: index into `MergePlan.models` (of `TensorPlan.statistics`: into
            `MergePlan.statistics`); None is `MergePlan.base`.
        name: of the tensor there; it differs from the output's where layers are stacked anew or a
            tied head is read from the embedding.
    """

    model: int | None
    name: str


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor.

    Attributes:
        method: the merge method's name.
        sources: what is merged, n of them; with slices another n and other models than elsewhere.
        base: the base's tensor, kept apart from the sources; None where the method has no base.
        parameters: every parameter of the method by its name in a configuration, resolved for this
            tensor; per-model ones are tuples of n. Many tensors may share one mapping.
        statistics: one a source, for methods that ask for them; None where there are none.
        union: how rows of different vocabularies come together; None where rows are alike.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str
    sources: tuple[Source, ...]
    base: Source | None
    parameters: Mapping[str, Any]
    statistics: tuple[Source | None, ...] = ()
    union: "RowUnion | None" = None

    @property
    def numel(self) -> int:
        """Elements of the output tensor."""
        return math.prod(self.shape)

    @property
    def copied(self) -> bool:
        """Whether it is no weight (a mask, position ids) and is taken from the first source."""
        return self.dtype not in FLOATING


@dataclass(frozen=True)
class MergePlan:
    """A merge that can be carried out: complete, checked, printable.

    Attributes:
        models: the checkpoints that sources lie in, in the order in which they were named.
        base: the base checkpoint, or None; the same object as one of `models` where a method takes
            it for one of them.
        statistics: the checkpoints of statistics that were named.
        tensors: every output tensor, in the order of writing.
        config: what was asked.
        output_config: what the output's `config.json` shall hold.
        tokenizer: the united vocabulary to write beside; None: the template's files as they are.
        notes: what the user may want to know, a sentence each.
    """

    models: tuple[Checkpoint, ...]
    base: Checkpoint | None
    statistics: tuple[Checkpoint, ...]
    tensors: tuple[TensorPlan, ...]
    config: MergeConfig
    output_config: Mapping[str, Any]
    tokenizer: Any = None
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The merge method's name."""
        return self.config.merge_method

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
        """Weight bytes of all sources; a method that measures first reads them twice."""
        return sum(
            self.spec(source).nbytes
            for tensor in self.tensors
            for source in (*tensor.sources, tensor.base)
            if source is not None
        )

    @property
    def bytes_to_write(self) -> int:
        """Weight bytes of the output."""
        return sum(nbytes_of(tensor.dtype, tensor.shape) for tensor in self.tensors)

    @property
    def reads_base(self) -> bool:
        """Whether any tensor needs the base's weights beside its sources."""
        return any(tensor.base is not None for tensor in self.tensors)

    def checkpoint(self, source: Source) -> Checkpoint:
        """The checkpoint that a source or a tensor's base lies in."""
        if source.model is not None:
            return self.models[source.model]
        if self.base is None:
            raise ValueError(f"{source.name}: the plan has no base")
        return self.base

    def spec(self, source: Source) -> TensorSpec:
        """The place, dtype and shape of a source or a tensor's base."""
        return self.checkpoint(source).tensors[source.name]

    def describe(self) -> dict[str, Any]:
        """The whole plan as plain data: every output tensor and where it comes from."""
        return {
            "method": self.method,
            "models": [model.name for model in self.models],
            "base": self.base.name if self.base else None,
            "bytes_to_read": self.bytes_to_read,
            "bytes_to_write": self.bytes_to_write,
            "tensors": [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "sources": [source.name for source in tensor.sources],
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
        _tensor_plan(name, template, models, base, config.dtype, values, method)
        for name in template.tensors
    )
    _refuse_extra_tensors(models, tensors, template)
    return MergePlan(models, base, (), tensors, config, dict(template.config))


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
    method: Method,
) -> TensorPlan:
    spec = template.tensors[name]
    if spec.dtype not in FLOATING and place(name).role in ("attention", "mlp", "embedding", "head"):
        raise UnsupportedCheckpoint(
            f"{name}: {template.name} stores it as {spec.dtype}, which cannot be averaged. "
            "Convert the model to BF16 first."
        )
    sources = tuple(_source(name, spec.shape, model, template) for model in models)
    written = dtype if dtype and spec.dtype in FLOATING else spec.dtype
    return TensorPlan(
        name,
        written,
        spec.shape,
        method.name,
        tuple(Source(i, source) for i, source in enumerate(sources)),
        Source(None, name) if base and method.base == "required" else None,
        values,
    )


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
