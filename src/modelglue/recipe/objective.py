"""A family's candidates, merged into one live module and scored; nothing is written to disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.nn import Module

from modelglue.checkpoint.naming import place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.scores import Scores
from modelglue.evaluate.task import SplitName, Task
from modelglue.merge.config import MergeConfig, ModelEntry
from modelglue.merge.plan import MergePlan, plan_of
from modelglue.merge.resident import Resident


@dataclass(frozen=True)
class Template:
    """Who gives a family's merges their configuration, tokenizer and dtypes: a model of its shape.

    Attributes:
        reference: what the user wrote for it, for the model card.
        folder: where transformers can load it.
    """

    checkpoint: Checkpoint
    reference: str
    folder: Path


class Family:
    """Models that can be merged with one another, and the module that holds what is tried.

    A single model is scored as it lies, with its own tokenizer and settings; a merge in a module of
    the template, as it would be written.

    Args:
        models: checkpoint by name; their order is the order of summing.
        references: what the user wrote for each, for the model card.
        template: see there.
        folder_of: a model's name → a folder that transformers can load.
        load: a folder → the model in it.
    """

    def __init__(
        self,
        models: Mapping[str, Checkpoint],
        *,
        references: Mapping[str, str],
        template: Template,
        folder_of: Callable[[str], Path],
        load: Callable[[Path], HuggingFaceModel],
    ) -> None:
        self.models = dict(models)
        self._references = references
        self._template = template
        self._folder_of = folder_of
        self._load = load
        self._single: tuple[str, HuggingFaceModel] | None = None
        self._standing: dict[str, float] | None = None

    def plan(self, coefficients: Mapping[str, float]) -> MergePlan:
        """The merge with these coefficients of just the models that have one."""
        kept = [name for name in self.models if name in coefficients]
        entries = tuple(
            ModelEntry(self._references[name], {"weight": coefficients[name]}) for name in kept
        )
        config = MergeConfig("linear", entries, self._template.reference)
        return plan_of(config, tuple(self.models[name] for name in kept), self._template.checkpoint)

    @cached_property
    def _live(self) -> HuggingFaceModel:
        return self._load(self._template.folder)

    @cached_property
    def _resident(self) -> Resident:
        plan = self.plan(dict.fromkeys(self.models, 1.0))
        names = {id(checkpoint): name for name, checkpoint in self.models.items()}

        def load(checkpoint: Checkpoint) -> Module:
            module: Module = self._load(self._folder_of(names[id(checkpoint)])).module
            return module

        return Resident(plan, self._live.module, load=load)

    def model(self, coefficients: Mapping[str, float]) -> HuggingFaceModel:
        """A candidate, ready to be scored; the next call may change it in place."""
        if len(coefficients) > 1:
            self._merge(coefficients)
            return self._live
        (name,) = coefficients
        if self._single is None or self._single[0] != name:
            self._single = None  # let go of the last one before loading the next
            self._single = (name, self._load(self._folder_of(name)))
        return self._single[1]

    def _merge(self, coefficients: Mapping[str, float]) -> None:
        if self._standing != dict(coefficients):
            self._standing = None
            self._resident.load([coefficients.get(name, 0.0) for name in self.models])
            self._standing = dict(coefficients)

    def score(
        self,
        coefficients: Mapping[str, float],
        tasks: Sequence[Task],
        split: SplitName,
        sandbox: Sandbox | None,
    ) -> Scores:
        """A candidate's scores."""
        model = self.model(coefficients)
        return Scores(tuple(task.evaluate(model, split, sandbox=sandbox) for task in tasks))

    @torch.no_grad()
    def similarity(self, coefficients: Mapping[str, float], name: str) -> float:
        """Cosine similarity of a candidate and one model, as families are found by.

        The mean over all attention and MLP matrices of the mean column-wise cosine.
        """
        self._merge(coefficients)
        column = list(self.models).index(name)
        cosines = [
            _column_cosine(merged, models[column].to(merged.device))
            for tensor, (merged, models) in self._resident.tensors().items()
            if merged.dim() >= 2 and place(tensor).role in ("attention", "mlp")
        ]
        return float(torch.stack(cosines).double().mean())


def _column_cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The mean column-wise cosine of two matrices, or of stacks of them (fused experts).

    Two columns of zeros are alike, as `zoo.similarity` has it.
    """
    a, b = a.float(), b.float()
    cosine = torch.cosine_similarity(a, b, dim=-2)
    alike = ~(a.any(dim=-2) | b.any(dim=-2))
    return torch.where(alike, 1.0, cosine).mean()
