"""From names to tensors: what each model stores for an output tensor, and whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from modelglue.checkpoint.naming import is_buffer, place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.spec import TensorSpec
from modelglue.errors import (
    InputError,
    NotMergeable,
    ShapeMismatch,
    UnsupportedCheckpoint,
)
from modelglue.merge.config.values import Resolver
from modelglue.merge.method import Method
from modelglue.merge.plan.heads import Heads
from modelglue.merge.plan.problems import Problems
from modelglue.merge.plan.slices import Row
from modelglue.merge.plan.statistics import Statistics
from modelglue.merge.plan.tensor_plan import FLOATING, Source, TensorPlan
from modelglue.merge.plan.values import ValueCheck, unsaid
from modelglue.merge.vocabulary.rows import RowUnion
from modelglue.merge.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Group:
    """Models that are merged together: those of a slice, or all.

    Attributes:
        models: n indices into the plan's models.
        base: what the method reads beside them: (an index into the models, or None for the
            plan's base), or None for nothing.
    """

    models: tuple[int, ...]
    base: tuple[int | None] | None
    resolver: Resolver

    @property
    def columns(self) -> tuple[int | None, ...]:
        """The models, then the base if there is one."""
        return self.models if self.base is None else (*self.models, self.base[0])


class Matcher:
    """Finds the tensors that rows name.

    Args:
        method: of the merge.
        models, base: of the plan.
        statistics: of the models.
        template: whose shapes the output has.
        dtype: of the output; None for the one that holds the values of all inputs.
        heads: a tied model's embedding counts for its head.
        vocabulary: how tokens are united; None if they cannot be, which is told elsewhere.
        token_tensors: the names of the tensors that have one row a token.
        problems: all that is wrong is added here.
    """

    def __init__(
        self,
        method: Method,
        models: Sequence[Checkpoint],
        base: Checkpoint | None,
        statistics: Statistics,
        *,
        template: Checkpoint,
        dtype: str | None,
        heads: Heads,
        vocabulary: Vocabulary | None,
        token_tensors: frozenset[str],
        problems: Problems,
    ) -> None:
        self._method = method
        self._models = models
        self._base = base
        self._statistics = statistics
        self._template = template
        self._dtype = dtype
        self._heads = heads
        self._vocabulary = vocabulary
        self._token_tensors = token_tensors
        self._problems = problems
        self._check = ValueCheck(method, problems)

    def match(self, row: Row, group: Group) -> TensorPlan | None:
        """The plan of one output tensor; None if it cannot be made or is left out.

        Args:
            row: what it is made of, by name.
            group: what the row's models and base are.
        """
        wanted = row.names if row.base is None else (*row.names, row.base)
        sources = []
        specs: list[TensorSpec] = []
        for index, name in zip(group.columns, wanted, strict=True):
            model = self._model(index)
            spec = model.tensors.get(name)
            if spec is None and row.name in self._heads.names:
                spec = model.tensors.get(self._heads.embedding(model) or "")
            if spec is None:
                if not is_buffer(row.name):
                    self._lacks(row.name, model, specs[0].name if specs else None)
                return None
            sources.append(Source(index, spec.name))
            specs.append(spec)
        like = self._template.tensors.get(row.name, specs[0]) if row.group == 0 else specs[0]
        shape, union = self._shape(row.name, sources, specs, like, group)
        dtype = self._output_dtype(row.name, specs)
        parameters = group.resolver(row.name, row.names, row.t)
        self._check(row.name, parameters)
        n = len(group.models)
        models = [self._model(source.model) for source in sources[:n]]
        statistics = self._statistics.of(
            row.name, list(zip(models, specs, strict=False)), parameters, united=union is not None
        )
        return TensorPlan(
            row.name,
            dtype,
            shape,
            self._method.name,
            tuple(sources[:n]),
            sources[n] if group.base is not None else None,
            parameters,
            statistics,
            union,
        )

    def unsaid(self, groups: Sequence[Group]) -> dict[str, None]:
        """What no filter gives to some tensor; see `values.unsaid`."""
        notes: dict[str, None] = {}
        for group in groups:
            models = [self._models[index] for index in group.models]
            notes |= unsaid(self._method, group.resolver, models, self._problems)
        return notes

    def extra(self, model: Checkpoint, names: Sequence[str]) -> None:
        """Tell that a model has tensors which the output would lose."""
        for name in names:
            if is_buffer(name):
                continue
            self._problems.tell(
                NotMergeable,
                name,
                f"{model.name} has it, {self._template.name} lacks it; merging would lose it. "
                "Only models of one architecture can be merged.",
            )

    def _model(self, index: int | None) -> Checkpoint:
        if index is not None:
            return self._models[index]
        if self._base is None:
            raise ValueError("a group has the base that the plan lacks")
        return self._base

    def _lacks(self, name: str, model: Checkpoint, other: str | None) -> None:
        who = self._template.name if model is not self._template else "another model"
        self._problems.tell(
            NotMergeable,
            name,
            f"{who} has it, {model.name} lacks it. Only models of one architecture can be merged.",
        )

    def _shape(
        self,
        name: str,
        sources: Sequence[Source],
        specs: Sequence[TensorSpec],
        like: TensorSpec,
        group: Group,
    ) -> tuple[tuple[int, ...], RowUnion | None]:
        tokens = name in self._token_tensors
        for source, spec in zip(sources, specs, strict=True):
            if spec.shape == like.shape or (tokens and spec.shape[1:] == like.shape[1:]):
                continue
            model = self._model(source.model).name
            self._problems.tell(
                ShapeMismatch,
                name,
                f"{model} has {list(spec.shape)}, {self._template.name} has {list(like.shape)}. "
                "Only tensors of one shape can be merged; leave this model out.",
            )
            return like.shape, None
        if not tokens or self._vocabulary is None:
            return like.shape, None
        rows = self._vocabulary.rows(name, like.shape[0])
        try:
            union = self._union(self._vocabulary, specs, group, rows)
        except InputError as error:
            self._problems.add(error)
            union = None
        return (rows, *like.shape[1:]), union

    @staticmethod
    def _union(
        vocabulary: Vocabulary, specs: Sequence[TensorSpec], group: Group, rows: int
    ) -> RowUnion | None:
        n = len(group.models)
        stored = [spec.shape[0] for spec in specs]
        if group.base is None or group.base[0] is None:
            below = stored[n] if group.base else None
            return vocabulary.union(group.models, stored[:n], below, rows)
        # A slice's own base is one of the models to the vocabulary.
        union = vocabulary.union((*group.models, group.base[0]), stored, None, rows)
        if union is not None:
            raise NotMergeable(
                "slices: vocabularies differ, and the slice that the embedding comes from has a "
                "base_model of its own. Name it as base_model of the whole merge."
            )
        return None

    def _output_dtype(self, name: str, specs: Sequence[TensorSpec]) -> str:
        dtypes = {spec.dtype for spec in specs}
        if dtypes <= set(FLOATING):
            return self._dtype or promoted(dtypes)
        if place(name).role in ("attention", "mlp", "embedding", "head") or len(dtypes) > 1:
            strange = next(i for i, spec in enumerate(specs) if spec.dtype not in FLOATING)
            self._problems.tell(
                UnsupportedCheckpoint,
                name,
                f"it is stored as {specs[strange].dtype} in {specs[strange].file.parent.name}, "
                "which cannot be averaged. Convert the model to BF16 first.",
            )
        return specs[0].dtype


def promoted(dtypes: set[str]) -> str:
    """The floating dtype that holds the values of all: float32 for the two of 16 bits."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "F64" if "F64" in dtypes else "F32"
