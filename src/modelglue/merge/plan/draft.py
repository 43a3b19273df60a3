"""A plan in the making: the models in their places, and every output tensor matched."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import InputError, NotMergeable
from modelglue.merge.config.inputs import arrange
from modelglue.merge.config.schema import MergeConfig, ModelEntry, same_model
from modelglue.merge.config.values import Resolver, filters
from modelglue.merge.plan.heads import Heads
from modelglue.merge.plan.match import Group, Matcher
from modelglue.merge.plan.output_config import Restacked, output_config
from modelglue.merge.plan.problems import Problems
from modelglue.merge.plan.settings import CRIME, compared
from modelglue.merge.plan.slices import (
    Layers,
    Row,
    Slice,
    Stacked,
    covered,
    depth_of,
    parts_of,
    stacked,
    whole,
)
from modelglue.merge.plan.statistics import Statistics
from modelglue.merge.plan.tensor_plan import TensorPlan
from modelglue.merge.plan.values import variation
from modelglue.merge.vocabulary.vocabulary import Vocabulary, unite, vocabulary_tensors


class Draft:
    """Everything of a plan, made piece by piece; `problems` has all that is wrong with it.

    Args:
        config: what was asked.
        opened: every checkpoint that it names, by `same_model` of its reference.
        allow_crimes: settings that change the meaning of entries may differ.
    """

    def __init__(
        self, config: MergeConfig, opened: Mapping[str, Checkpoint], *, allow_crimes: bool = False
    ) -> None:
        self.problems = Problems()
        self._config = config
        self._method = config.method
        self._inputs = {
            name: [arrange(config.method, group, config.base_model) for group in part.groups]
            for name, part in config.parts.items()
        }
        self._base = same_model(config.base_model) if config.base_model else None
        listed: dict[str, str] = {}
        for entry in self._entries():
            listed.setdefault(same_model(entry.model), entry.model)
        self._references = tuple(listed.values())
        self._index = {name: i for i, name in enumerate(listed)}
        self._layers: dict[tuple[int, str], Layers] = {}
        self._parted: dict[int, dict[str, list[str]]] = {}
        self.models = tuple(opened[name] for name in listed)
        self.base = opened[self._base] if self._base else None
        self.statistics = tuple(opened[same_model(path)] for path in config.statistics)
        by_name = dict(zip(config.statistics, self.statistics, strict=True))
        self._statistics = Statistics(config.method, by_name, self.problems)
        self._unstacked = False
        self._defaulted: dict[str, None] = {}
        self.template = self.base or self.models[0]
        read = (*self.models, self.base) if self._reads_base and self.base else self.models
        self._read: tuple[Checkpoint, ...] = read
        self._heads = Heads(read, self.template)
        crimes, others = compared(read, self.template)
        self._differences = (*crimes, *others) if allow_crimes else others
        if not allow_crimes:
            self.problems.add(*(NotMergeable(f"{told}. {CRIME}") for told in crimes))

    def _entries(self) -> Iterator[ModelEntry]:
        """Everything that is read but the merge's base, where it is kept apart."""
        for inputs in (inputs for part in self._inputs.values() for inputs in part):
            yield from inputs.models
            # A slice's own base lies among the models.
            if inputs.base and same_model(inputs.base.model) != self._base:
                yield inputs.base

    @property
    def _reads_base(self) -> bool:
        return any(inputs.base for part in self._inputs.values() for inputs in part)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The output's tokens; None if it cannot be said what they are, which is then a problem."""
        try:
            return unite(
                self._config.tokenizer,
                self.models,
                self.base,
                references=self._references,
                base_reference=self._config.base_model,
                root=self._config.root,
            )
        except InputError as error:
            self.problems.add(error)
            return None

    def tensors(self) -> tuple[TensorPlan, ...]:
        """Every output tensor."""
        matcher = Matcher(
            self._method,
            self.models,
            self.base,
            self._statistics,
            template=self.template,
            dtype=self._config.out_dtype or self._config.dtype,
            heads=self._heads,
            vocabulary=self.vocabulary,
            token_tensors=frozenset().union(*map(vocabulary_tensors, self._read)),
            problems=self.problems,
        )
        found: list[TensorPlan | None] = []
        for name in self._config.parts:
            groups = self._groups(name)
            rows = self._rows(name, groups)
            found += [matcher.match(row, groups[row.group]) for row in rows]
            self._defaulted |= matcher.unsaid(groups)
            if not rows and self._config.parts[name].slices:
                self._unstacked = True  # what is lost with it is not told
                continue
            for model, lost in self._lost(name, rows, groups):
                matcher.extra(model, lost)
        tensors = tuple(tensor for tensor in found if tensor is not None)
        headless = self._heads.lost(tensor.name for tensor in tensors)
        wrong = (variation(self._method, tensors), headless)
        self.problems.add(*(problem for problem in wrong if problem is not None))
        return tensors

    def output_config(self, tensors: Sequence[TensorPlan]) -> dict[str, Any]:
        """The `config.json` to write; empty if nothing can be written, which is then a problem."""
        config: Mapping[str, Any] = self.template.config
        layers = Layers(self.template.tensors)
        try:
            return output_config(
                config if self.vocabulary is None else self.vocabulary.config(config),
                dtypes={tensor.dtype for tensor in tensors if not tensor.copied},
                tied=self._heads.tied,
                stacks=[] if self._unstacked else list(self._restacked()),
                depths={stack: layers.depth(stack) for stack in layers.stacks},
            )
        except InputError as error:
            self.problems.add(error)
            return {}

    def notes(self, tensors: Sequence[TensorPlan]) -> tuple[str, ...]:
        """What is allowed but may not be meant."""
        levels = [self._config.parameters, *(entry.parameters for entry in self._entries())]
        for part in self._config.parts.values():
            levels += [part.parameters, *(group.parameters for group in part.groups)]
        wanted = dict.fromkeys(text for level in levels for text in filters(level))
        found = [
            f"the filter {text!r} is in no tensor's name"
            for text in wanted
            if not any(text in tensor.name for tensor in tensors)
        ]
        if self._method.base == "none" and self._base and self._base not in self._index:
            found.append(
                f"{self._config.base_model} is not merged: {self._method.name} has no use for a "
                "base, which lends its configuration and tokenizer"
            )
        if self._differences:
            told = "; ".join(self._differences)
            found.append(f"the output's config.json is that of {self.template.name}: {told}")
        return (
            *found,
            *self._defaulted,
            *self._statistics.notes,
            *(self.vocabulary.notes if self.vocabulary is not None else ()),
        )

    def _groups(self, name: str) -> list[Group]:
        part = self._config.parts[name]
        found = []
        for group, inputs in zip(part.groups, self._inputs[name], strict=True):
            levels = [group.parameters, part.parameters, self._config.parameters]
            own = [entry.parameters for entry in inputs.models]
            columns = [self._index[same_model(entry.model)] for entry in inputs.models]
            base: tuple[int | None] | None = None
            if inputs.base:
                base = (self._place(inputs.base),)
            found.append(Group(tuple(columns), base, Resolver(self._method, levels, own)))
        return found

    def _rows(self, name: str, groups: Sequence[Group]) -> list[Row]:
        part = self._config.parts[name]
        if part.slices:
            rows = list(stacked(self._slices(name), self.problems.add))
        else:
            layers = self._layers_of(self.template, name)
            group = groups[0]
            graded = not group.resolver.constant
            rows = list(whole(layers, len(group.models), base=bool(group.base), graded=graded))
        heads = self._heads
        if not heads.written:
            return [row for row in rows if row.name not in heads.names]
        # A tied template, or slice, does not name the head that others have.
        last = len(groups) - 1
        planned = {row.name for row in rows} if rows else heads.names
        for head in sorted(heads.names - planned):
            # One that all of them tie is written from the embedding: others have it, elsewhere.
            ends = {head, *(heads.embedding(self._model(index)) for index in groups[last].columns)}
            columns = [self._names(self._model(index), name) for index in groups[last].columns]
            if any(not ends.isdisjoint(column) for column in columns):
                base = head if groups[last].base else None
                rows.append(Row(head, (head,) * len(groups[last].models), base, 0.0, last))
        return rows

    def _lost(
        self, name: str, rows: Sequence[Row], groups: Sequence[Group]
    ) -> Iterator[tuple[Checkpoint, list[str]]]:
        """What the models of a part have that the output would not."""
        used: list[list[set[str]]] = [[set() for _ in group.columns] for group in groups]
        for row in rows:
            for column, tensor in zip(used[row.group], (*row.names, row.base), strict=False):
                column.add(tensor or "")
        slices = self._slices(name) if self._config.parts[name].slices else []
        for i, (group, columns) in enumerate(zip(groups, used, strict=True)):
            for j, index in enumerate(group.columns):
                model = self._model(index)
                has: Iterable[str] = self._names(model, name)
                if slices:
                    first, last = i == 0, i == len(slices) - 1
                    taken = slices[i].columns[j]
                    has = covered(taken, slices[i].count, first=first, last=last)
                lost = [t for t in has if t not in columns[j] and t not in self._heads.names]
                if lost:
                    yield model, lost

    def _slices(self, name: str) -> list[Slice]:
        return [
            Slice(
                [self._stacked(entry, name) for entry in inputs.models],
                self._stacked(inputs.base, name) if inputs.base else None,
                _count(inputs.models[0]),
            )
            for inputs in self._inputs[name]
        ]

    def _stacked(self, entry: ModelEntry, name: str) -> Stacked:
        model = self._checkpoint(entry)
        first = entry.layer_range[0] if entry.layer_range else 0
        return Stacked(entry.model, self._layers_of(model, name), first)

    def _restacked(self) -> Iterator[Restacked]:
        """The stacks whose layers are taken anew; each layer has its first model's settings."""
        for name, part in self._config.parts.items():
            taken = [
                (self._checkpoint(inputs.models[0]), layer)
                for inputs in (self._inputs[name] if part.slices else [])
                for layer in range(*(inputs.models[0].layer_range or (0, 0)))
            ]
            if taken:
                stack = self._layers_of(taken[0][0], name).main or ""
                kinds = [self._layers_of(model, name).kind(stack, n) for model, n in taken]
                template = self._layers_of(self.template, name)
                own = [template.kind(stack, n) for n in range(template.depth(stack))]
                origins = tuple((model.config, layer) for model, layer in taken)
                yield Restacked(stack, origins, tuple(kinds), tuple(own))

    def _place(self, entry: ModelEntry) -> int | None:
        """Which of the models it is; None for the merge's base, where that is none of them."""
        return self._index.get(same_model(entry.model))

    def _checkpoint(self, entry: ModelEntry) -> Checkpoint:
        return self._model(self._place(entry))

    def _model(self, index: int | None) -> Checkpoint:
        model = self.base if index is None else self.models[index]
        if model is None:
            raise ValueError("a slice has the base that the merge lacks")
        return model

    def _layers_of(self, model: Checkpoint, name: str) -> Layers:
        key = (id(model), name)
        if key not in self._layers:
            self._layers[key] = Layers(self._names(model, name), depth_of(model.config))
        return self._layers[key]

    def _names(self, model: Checkpoint, name: str) -> Sequence[str]:
        if not self._config.modules:
            return list(model.tensors)
        if id(model) not in self._parted:
            self._parted[id(model)] = parts_of(model.tensors, list(self._config.modules))
        return self._parted[id(model)][name]


def _count(entry: ModelEntry) -> int:
    return entry.layer_range[1] - entry.layer_range[0] if entry.layer_range else 0
