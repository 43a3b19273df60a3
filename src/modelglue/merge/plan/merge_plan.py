"""Configuration → MergePlan: every output tensor resolved and checked, no weight read yet.

Whatever can be wrong is wrong here, and all of it is told at once. Two executors run the same
plan: `stream` (to disk) and `resident` (into a live module).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import open_checkpoint
from modelglue.checkpoint.spec import TensorSpec, nbytes_of
from modelglue.errors import InputError
from modelglue.merge.config.places import places
from modelglue.merge.config.schema import MergeConfig, same_model
from modelglue.merge.plan.describe import describe
from modelglue.merge.plan.draft import Draft
from modelglue.merge.plan.problems import together
from modelglue.merge.plan.tensor_plan import FLOATING, Source, TensorPlan
from modelglue.merge.plan.values import with_values
from modelglue.merge.vocabulary.tokens import located

if TYPE_CHECKING:
    from modelglue.merge.vocabulary.vocabulary import Vocabulary

__all__ = ["FLOATING", "MergePlan", "Source", "TensorPlan", "make_plan", "plan_of", "with_values"]


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
        tokenizer: the output's tokens, and the files to write beside the weights.
        notes: what the user may want to know, a sentence each.
    """

    models: tuple[Checkpoint, ...]
    base: Checkpoint | None
    statistics: tuple[Checkpoint, ...]
    tensors: tuple[TensorPlan, ...]
    config: MergeConfig
    output_config: Mapping[str, Any]
    tokenizer: Vocabulary | None = None
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
        """Bytes of all sources and statistics; a method that measures first reads them twice."""
        return sum(
            spec.nbytes
            for tensor in self.tensors
            for spec in (
                *(self.spec(s) for s in (*tensor.sources, tensor.base) if s is not None),
                *(self._statistics_spec(s) for s in tensor.statistics if s is not None),
            )
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

    def _statistics_spec(self, source: Source) -> TensorSpec:
        return self.statistics[source.model or 0].tensors[source.name]

    def describe(self, *, threads: int | None = None) -> dict[str, Any]:
        """The whole plan as plain data: every output tensor and where it comes from.

        The memory in it is that of so many threads, by default one a core.
        """
        return describe(self, threads=threads)


def make_plan(config: MergeConfig, *, allow_crimes: bool = False) -> MergePlan:
    """Open every checkpoint that the configuration names and resolve every tensor.

    Args:
        config: what is asked.
        allow_crimes: go on where the models' configurations say that entries of the same tensors
            mean different things: another architecture, other heads. Notes tell where.

    Raises:
        CheckpointError: a checkpoint cannot be opened; all that cannot are told.
        NotMergeable: vocabularies or tensor names differ.
        ShapeMismatch: the same tensor has different shapes.
        MergeError: several of these.
    """
    opened: dict[str, Checkpoint] = {}
    problems: list[InputError] = []
    for reference, key in places(config).items():
        try:
            opened[same_model(reference)] = _open(reference, config.root)
        except InputError as error:
            problems.append(_named(key, error))
    if problems:
        raise together([*problems, *_tokenizer_problems(config)])
    return _plan(config, opened, allow_crimes=allow_crimes)


def plan_of(config: MergeConfig, opened: Mapping[str, Checkpoint]) -> MergePlan:
    """The plan for checkpoints that are open already.

    Args:
        config: what is asked.
        opened: every model that it names, by what it calls it; statistics are opened here.
    """
    by_name = {same_model(reference): checkpoint for reference, checkpoint in opened.items()}
    for reference in config.statistics:
        by_name[same_model(reference)] = _open(reference, config.root)
    return _plan(config, by_name, allow_crimes=False)


def _plan(
    config: MergeConfig, opened: Mapping[str, Checkpoint], *, allow_crimes: bool
) -> MergePlan:
    draft = Draft(config, opened, allow_crimes=allow_crimes)
    tensors = draft.tensors()
    output_config = draft.output_config(tensors)
    if draft.problems:
        raise draft.problems.error()
    return MergePlan(
        draft.models,
        draft.base,
        draft.statistics,
        tensors,
        config,
        output_config,
        draft.vocabulary,
        draft.notes(tensors),
    )


def _open(reference: str, root: Path) -> Checkpoint:
    """Beside the configuration, or where the command is run, as mergekit has it."""
    return open_checkpoint(reference, root=(root, Path()))


def _named(key: str, error: InputError) -> InputError:
    return type(error)(f"{key}: {error}")


def _tokenizer_problems(config: MergeConfig) -> list[InputError]:
    """What is wrong with a tokenizer of none of the models, where those cannot be opened."""
    source = config.tokenizer.source if config.tokenizer else None
    models = map(same_model, config.references)
    if source is None or source in ("union", "base") or same_model(source) in models:
        return []
    try:
        located(source, config.root, config.references)
    except InputError as error:
        return [error]
    return []
