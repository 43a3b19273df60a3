"""A family's candidates, merged into one live module and scored; nothing is written to disk."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from modelglue.checkpoint.naming import place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import NonFiniteOutput, NonFiniteTensor, UnusableValues
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.scores import Scores
from modelglue.evaluate.scoring import evaluate
from modelglue.evaluate.task import SplitName, Task
from modelglue.merge.config.schema import MergeConfig
from modelglue.merge.engine.resident import Resident
from modelglue.merge.plan.merge_plan import MergePlan, plan_of, with_values
from modelglue.recipe.formula import Formula
from modelglue.recipe.shapes import built_like, shape_of
from modelglue.search.problem import Dials, Trial, models_of

_PLANS = 256
"""Sets of models whose plans are kept; a search that goes model by model comes to many."""

_MODULES = 2
"""Modules of other depths that are kept; each takes the memory of a model."""


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
    """Models that can be merged with one another, and the modules that hold what is tried.

    A single model is scored as it lies, with its own tokenizer and settings; a merge in a module of
    the template, as it would be written.

    Args:
        models: checkpoint by name; their order is the order of summing.
        references: what the user wrote for each, for the model card.
        template: see there.
        folder_of: a model's name → a folder that transformers can load.
        load: a folder → the model in it.
        formula: how they are merged.
        root: what paths in the formula are relative to.
        memory: bytes of weights to hold beside the module, on each of its devices; see `Resident`.
    """

    def __init__(
        self,
        models: Mapping[str, Checkpoint],
        *,
        references: Mapping[str, str],
        template: Template,
        folder_of: Callable[[str], Path],
        load: Callable[[Path], HuggingFaceModel],
        formula: Formula | None = None,
        root: Path = Path(),
        memory: int | None = None,
    ) -> None:
        self.models = dict(models)
        self._references = {name: references[name] for name in models}
        self._template = template
        self._formula = formula or Formula()
        self._root = root
        self._memory = memory
        self._folder_of = folder_of
        self._load = load
        self._plans: dict[Hashable, MergePlan] = {}
        self._rebuilt: dict[str, _Live] = {}
        self._single: tuple[str, HuggingFaceModel] | None = None
        self._standing: tuple[dict[str, float], _Live] | None = None

    @property
    def most(self) -> int | None:
        """How many of the models can be merged; 1 for a method without the base that it needs."""
        lacks_base = self._formula.definition.needs_base and not self._template.is_base
        return 1 if lacks_base and not self._formula.absorbs else self._formula.most

    def dials(self, *, group_size: int | None = None, roles: bool = False) -> Dials:
        """What a search may turn; see `dials.dials`."""
        found = self._formula.dials(self._template.checkpoint, group_size=group_size, roles=roles)
        method = self._formula.definition
        if not (method.needs_base and self._template.is_base) or self._formula.absorbs:
            return found
        base = self._template.checkpoint.path
        same = tuple(name for name, model in self.models.items() if model.path == base)
        return replace(found, idle=same)

    def plan(
        self, coefficients: Mapping[str, float], *, formula: Formula | None = None
    ) -> MergePlan:
        """The merge with these coefficients of just the models that have one.

        Raises:
            UnusableValues: nothing can be merged with them.
        """
        formula = formula or self._formula
        candidate = formula.canonical(coefficients)
        if not models_of(candidate):
            raise UnusableValues("every weight is 0")
        config = self._config(formula, candidate)
        if config.slices:
            return self._planned(config)
        # All but numbers is the same for candidates of the same models.
        key = (formula.method, config.references, config.base_model)
        if key not in self._plans:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            base = formula.base(candidate)
            plain = {name: 2.0 if name == base else 1.0 for name in models_of(candidate)}
            self._plans[key] = self._planned(self._config(formula, plain))
        return with_values(self._plans[key], config)

    def _config(self, formula: Formula, candidate: Mapping[str, float]) -> MergeConfig:
        return formula.config(
            candidate,
            self._references,
            template=self._template.reference,
            root=self._root,
            tensors=self._template.checkpoint.tensors,
        )

    def _planned(self, config: MergeConfig) -> MergePlan:
        opened = {self._template.reference: self._template.checkpoint}
        opened |= {self._references[name]: model for name, model in self.models.items()}
        return plan_of(config, opened)

    @cached_property
    def _live(self) -> "_Live":
        """A module of the template, and all models in memory."""
        model = self._load(self._template.folder)
        # Of a method that takes a few models at a time, another holds them all.
        formula = self._formula if self.most is None else Formula()
        plan = self.plan(dict.fromkeys(self.models, 1.0), formula=formula)
        return _Live(model, Resident(plan, model.module, memory=self._memory))

    def model(self, coefficients: Mapping[str, float]) -> HuggingFaceModel:
        """A candidate, ready to be scored; the next call may change it in place.

        Raises:
            UnusableValues: nothing can be merged with these coefficients.
            NonFiniteTensor: the merge holds NaN or infinity.
        """
        name = self._alone(coefficients)
        if name is None:
            return self._merged(coefficients).model
        if self._single is None or self._single[0] != name:
            self._single = None  # let go of the last one before loading the next
            self._single = (name, self._load(self._folder_of(name)))
        return self._single[1]

    def _alone(self, coefficients: Mapping[str, float]) -> str | None:
        """The model that a candidate is; None for a merge."""
        names = models_of(self._formula.canonical(coefficients))
        # Without the base that the method needs there is nothing to merge one model with.
        if self.most == 1 and len(names) == 1 and not self._formula.reorders(coefficients):
            return names[0]
        return self._formula.single(coefficients)

    def _merged(self, coefficients: Mapping[str, float]) -> "_Live":
        candidate = self._formula.canonical(coefficients)
        if self._standing is None or self._standing[0] != candidate:
            self._standing = None
            plan = self.plan(candidate)
            live = self._shaped(plan)
            live.resident.load(plan)
            self._standing = (candidate, live)
        return self._standing[1]

    def _shaped(self, plan: MergePlan) -> "_Live":
        """A module of the shape that the plan makes: of another depth, it is built once."""
        shape = shape_of(plan)
        if not plan.config.slices or shape == shape_of(self._live.resident.plan):
            return self._live
        live = self._rebuilt.pop(shape, None)
        if live is None:
            while len(self._rebuilt) >= _MODULES:
                del self._rebuilt[next(iter(self._rebuilt))]
            model = built_like(self._live.model, plan.output_config)
            live = _Live(model, Resident(plan, model.module, beside=self._live.resident))
        self._rebuilt[shape] = live  # the last used comes last
        return live

    def evaluate(
        self,
        coefficients: Mapping[str, float],
        tasks: Sequence[Task],
        parts: Mapping[str, Sequence[int]] | None,
        sandbox: Sandbox | None,
    ) -> Trial:
        """A candidate's scores on search items, or why it has none.

        Only what a candidate may be to blame for is such a reason: coefficients that nothing can be
        merged with, a merge or an answer that is NaN or infinite. All else is raised.

        Args:
            coefficients: the candidate.
            tasks: what it is scored at.
            parts: of each task, the indices of its search items to score; None for all.
            sandbox: for tasks that run code.
        """
        try:
            model = self.model(coefficients)
            return Trial(evaluate(model, tasks, "search", sandbox=sandbox, parts=parts))
        except (UnusableValues, NonFiniteTensor, NonFiniteOutput) as error:
            return Trial(None, str(error))

    def score(
        self,
        coefficients: Mapping[str, float],
        tasks: Sequence[Task],
        split: SplitName,
        sandbox: Sandbox | None,
    ) -> Scores:
        """A candidate's scores."""
        model = self.model(coefficients)
        return evaluate(model, tasks, split, sandbox=sandbox)

    @torch.no_grad()
    def similarity(self, coefficients: Mapping[str, float], name: str) -> float:
        """Cosine similarity of a candidate and one model, as families are found by.

        The mean over all attention and MLP matrices of the mean column-wise cosine; of a candidate
        with another number of layers, over those that both have.
        """
        single = self._alone(coefficients)
        resident = (self._live if single is not None else self._merged(coefficients)).resident
        cosines: list[torch.Tensor] = []
        for tensor, standing in resident.state.items():
            if standing.dim() < 2 or place(tensor).role not in ("attention", "mlp"):
                continue
            other = resident.tensor(self.models[name], tensor)
            one = standing if single is None else resident.tensor(self.models[single], tensor)
            if one is not None and other is not None and one.shape == other.shape:
                cosine = _column_cosine(one, other)
                cosines.append(cosine.to(cosines[0].device) if cosines else cosine)
        return float(torch.stack(cosines).double().mean())


@dataclass(frozen=True)
class _Live:
    """A model that is merged into."""

    model: HuggingFaceModel
    resident: Resident


def _column_cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The mean column-wise cosine of two matrices, or of stacks of them (fused experts).

    Two columns of zeros are alike, as `zoo.similarity` has it.
    """
    a, b = a.float(), b.to(a.device).float()
    cosine = torch.cosine_similarity(a, b, dim=-2)
    alike = ~(a.any(dim=-2) | b.any(dim=-2))
    return torch.where(alike, 1.0, cosine).mean()
