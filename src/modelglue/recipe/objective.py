"""A family's candidates, merged into one live module and scored; nothing is written to disk."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch

from modelglue.checkpoint.naming import place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.evaluate.task import SplitName, Task
from modelglue.merge.config import MergeConfig, ModelEntry
from modelglue.merge.plan import MergePlan, plan_of
from modelglue.merge.resident import Resident


class Family:
    """Models that can be merged with one another, and the module that holds what is tried.

    Args:
        models: checkpoint by name; their order is the order of summing.
        references: what the user wrote for each, for the model card.
        base: gives merged models their configuration and tokenizer; by default the first model.
        base_reference: what the user wrote for it.
        folder_of: a model's name → a folder that transformers can load.
    """

    def __init__(
        self,
        models: Mapping[str, Checkpoint],
        *,
        references: Mapping[str, str],
        base: Checkpoint | None,
        base_reference: str | None,
        folder_of: Callable[[str], Path],
        device: str = "cpu",
        dtype: str = "auto",
        batch_size: int | Literal["auto"] = "auto",
    ) -> None:
        self.models = dict(models)
        self._references = references
        self._base = base
        self._base_reference = base_reference
        self._folder_of = folder_of
        self._load_module = partial(
            HuggingFaceModel.load, device=device, dtype=dtype, batch_size=batch_size
        )
        self._standing: dict[str, float] | None = None

    def plan(self, coefficients: Mapping[str, float]) -> MergePlan:
        """The merge with these coefficients of just the models that have one."""
        kept = [name for name in self.models if name in coefficients]
        entries = tuple(
            ModelEntry(self._references[name], {"weight": coefficients[name]}) for name in kept
        )
        config = MergeConfig("linear", entries, self._base_reference)
        return plan_of(config, tuple(self.models[name] for name in kept), self._base)

    @cached_property
    def live(self) -> HuggingFaceModel:
        """The module that candidates are merged into."""
        return self._load(next(iter(self.models)))

    @cached_property
    def _resident(self) -> Resident:
        plan = self.plan(dict.fromkeys(self.models, 1.0))
        names = {id(checkpoint): name for name, checkpoint in self.models.items()}
        return Resident(plan, self.live.module, load=lambda c: self._load(names[id(c)]).module)

    def _load(self, name: str) -> HuggingFaceModel:
        return self._load_module(self._folder_of(name))

    def merged(self, coefficients: Mapping[str, float]) -> HuggingFaceModel:
        """The live model with these coefficients; the next call changes it in place."""
        if self._standing != dict(coefficients):
            self._standing = None
            self._resident.load([coefficients.get(name, 0.0) for name in self.models])
            self._standing = dict(coefficients)
        return self.live

    def score(
        self,
        coefficients: Mapping[str, float],
        tasks: Sequence[Task],
        split: SplitName,
        sandbox: Sandbox | None,
    ) -> Scores:
        """A candidate's scores."""
        model = self.merged(coefficients)
        scores: list[TaskScores] = [task.evaluate(model, split, sandbox=sandbox) for task in tasks]
        return Scores(tuple(scores))

    @torch.no_grad()
    def similarity(self, coefficients: Mapping[str, float], name: str) -> float:
        """Cosine similarity of a candidate and one model, as families are found by.

        The mean over all attention and MLP matrices of the mean column-wise cosine.
        """
        self.merged(coefficients)
        column = list(self.models).index(name)
        cosines = [
            torch.cosine_similarity(merged.float(), models[column].float(), dim=0).mean()
            for tensor, (merged, models) in self._resident.tensors().items()
            if merged.dim() == 2 and place(tensor).role in ("attention", "mlp")
        ]
        return float(torch.stack(cosines).double().mean())
