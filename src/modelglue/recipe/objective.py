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
from modelglue.merge.engine.resident import Resident
from modelglue.merge.plan.merge_plan import MergePlan, plan_of
from modelglue.recipe.formula import Formula


@dataclass(frozen=True)
class Template:
    """Who gives a family's merges their configuration, tokenizer and dtypes: a model of its shape.

    Attributes:
        reference: what the user wrote for it, for the model card.
        folder: where transformers can load it.
        is_base: whether it is the model that the others were fine-tuned from.
    """

    checkpoint: Checkpoint
    reference: str
    folder: Path
    is_base: bool = False


class Family:
    """Models that can be merged with one another, and the module that holds what is tried.

    A single model is scored as it lies, with its own tokenizer and settings; a merge in a module of
    the template, as it would be written.

    Args:
        models: checkpoint by name; their order is the order of summing.
        references: what the user wrote for each, for the model card.
        template: see there.
        formula: how they are merged.
        root: what paths in the formula are relative to.
        folder_of: a model's name → a folder that transformers can load.
        load: a folder → the model in it.
    """

    def __init__(
        self,
        models: Mapping[str, Checkpoint],
        *,
        references: Mapping[str, str],
        template: Template,
        formula: Formula,
        root: Path,
        folder_of: Callable[[str], Path],
        load: Callable[[Path], HuggingFaceModel],
    ) -> None:
        self.models = dict(models)
        self._references = references
        self._template = template
        self._formula = formula
        self._root = root
        self._folder_of = folder_of
        self._load = load
        self._single: tuple[str, HuggingFaceModel] | None = None
        self._standing: dict[str, float] | None = None

    @property
    def most(self) -> int | None:
        """How many of the models can be merged; 1 for a method without the base that it needs."""
        lacks_base = self._formula.definition.needs_base and not self._template.is_base
        return 1 if lacks_base and not self._formula.absorbs else self._formula.most

    def plan(
        self, coefficients: Mapping[str, float], *, formula: Formula | None = None
    ) -> MergePlan:
        """The merge with these coefficients of just the models that have one."""
        formula = formula or self._formula
        kept = {name: coefficients[name] for name in self.models if name in coefficients}
        config = formula.config(
            kept, self._references, template=self._template.reference, root=self._root
        )
        base = formula.base(kept)
        return plan_of(
            config,
            tuple(self.models[name] for name in kept if name != base),
            self._template.checkpoint if base is None else self.models[base],
        )

    @cached_property
    def _live(self) -> HuggingFaceModel:
        return self._load(self._template.folder)

    @cached_property
    def _resident(self) -> Resident:
        """All models in memory; of a method that takes a few at a time, to compare with."""
        formula = self._formula if self.most is None else Formula()
        return self._held(self.plan(dict.fromkeys(self.models, 1.0), formula=formula))

    def _held(self, plan: MergePlan) -> Resident:
        names = {id(checkpoint): name for name, checkpoint in self.models.items()}

        def load(checkpoint: Checkpoint) -> Module:
            name = names.get(id(checkpoint))
            folder = self._template.folder if name is None else self._folder_of(name)
            module: Module = self._load(folder).module
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
            if self.most is None:
                self._resident.load([coefficients.get(name) for name in self.models])
            else:
                self._held(self.plan(coefficients)).load()
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
        columns = [list(self.models).index(each) for each in (*coefficients, name)]
        alone = len(coefficients) == 1
        if not alone:
            self._merge(coefficients)
        cosines = [
            _column_cosine(models[columns[0]] if alone else merged, models[columns[-1]])
            for tensor, (merged, models) in self._resident.tensors().items()
            if merged.dim() >= 2 and place(tensor).role in ("attention", "mlp")
        ]
        return float(torch.stack(cosines).double().mean())


def _column_cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The mean column-wise cosine of two matrices, or of stacks of them (fused experts).

    Two columns of zeros are alike, as `zoo.similarity` has it.
    """
    a, b = a.float(), b.to(a.device).float()
    cosine = torch.cosine_similarity(a, b, dim=-2)
    alike = ~(a.any(dim=-2) | b.any(dim=-2))
    return torch.where(alike, 1.0, cosine).mean()
