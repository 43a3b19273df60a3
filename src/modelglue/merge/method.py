"""What a merge method is, and the folder in which they are found.

A method is pure maths on chunks: it never sees a file, a model or a name. Its parameters are
declared once, with their ranges, and serve validation, messages, search spaces, documentation and
tests. Whoever runs it cuts every tensor into chunks, gives it the same chunk of every model and
casts the result once.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from modelglue.merge.arrays import Array
from modelglue.merge.chunk import Chunk, Whole
from modelglue.registry import Registry


class Law(StrEnum):
    """Properties that a method may claim; `tests/laws` holds it to each, and to failing the rest.

    Weights are the defaults unless a law says otherwise.
    """

    IDEMPOTENT = "n copies of one tensor give that tensor"
    PERMUTATION_INVARIANT = "the order of the models (with their weights) changes nothing"
    HOMOGENEOUS = "scaling every input and the base scales the result"
    TRANSLATION_EQUIVARIANT = "adding one tensor to every input and the base adds it to the result"
    ELEMENTWISE = "an entry of the result depends on that entry of the inputs alone"
    ANCHORED = "n copies of the base give the base"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: as a configuration spells it. The formula takes `lambda` as `lambda_`.
        per: "model" (one value a model, passed as a tuple of n) or "merge" (one value).
        kind: what a value is. "number" may vary from layer to layer; a "checkpoint" is a path.
        default: used where the configuration is silent; None means that it must be given.
        low, high: the closed range that is allowed; None where it is open.
        above: whether `low` itself is excluded.
        choices: of a "choice".
        optional: whether None is a value of its own, so that nothing must be given.
    """

    name: str
    per: Literal["model", "merge"]
    help: str
    default: float | bool | str | None = None
    low: float | None = None
    high: float | None = None
    kind: Literal["number", "integer", "boolean", "choice", "checkpoint"] = "number"
    above: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False

    @property
    def keyword(self) -> str:
        """The name as Python takes it."""
        return f"{self.name}_" if self.name == "lambda" else self.name

    def problem(self, value: object) -> str | None:
        """Why `value` cannot be used, or None."""
        if value is None and self.optional:
            return None
        match self.kind:
            case "boolean":
                return None if isinstance(value, bool) else f"{value!r} is not true or false"
            case "choice":
                allowed = ", ".join(self.choices)
                return None if value in self.choices else f"{value!r} is none of {allowed}"
            case "checkpoint":
                return None if isinstance(value, str) else f"{value!r} is no path or name"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{value!r} is not a number"
        if not math.isfinite(value):
            return f"{value!r} is not finite"
        if self.kind == "integer" and value != int(value):
            return f"{value!r} is not a whole number"
        if self.low is not None and (value < self.low or (self.above and value == self.low)):
            return (
                f"{value!r} is not above {self.low}"
                if self.above
                else f"{value!r} is below {self.low}"
            )
        if self.high is not None and value > self.high:
            return f"{value!r} is above {self.high}"
        return None


Combine = Callable[..., Array]
"""The maths: (chunk, measured, parameters by keyword) → [k] float32."""

Measure = Callable[..., Any]
"""(whole, parameters by keyword) → what `combine` gets as `measured`, for every chunk alike.

It is given the parameters that its signature names: those alone the first pass depends on.
"""

Scope = Literal["chunk", "tensor", "model"]
"""What must be seen before the first chunk can be merged: nothing else, its tensor, the model."""


class Check(Protocol):
    """What is wrong with a set of parameter values that are each in range, or None."""

    def __call__(self, parameters: Mapping[str, Any], /) -> str | None:
        """Look at all values of one tensor together."""
        ...


@dataclass(frozen=True)
class Method:
    """A registered merge method.

    Attributes:
        combine: the maths on one chunk.
        parameters: all that it takes.
        laws: the properties that it claims.
        base: "none" (it has no use for one: if one is named it only lends its tokenizer and
            configuration), "optional", "required" (kept apart from the models: `chunk.base`), or
            "first" (it is the first of the models).
        models: least and greatest number of models (without a base that is kept apart); None where
            it is open.
        check: looks at parameter values together (weights that sum to 0, say).
        measure: a first pass over the whole tensor, for methods that need more than a chunk.
        scope: says, from the parameters, what `measure` sees: one tensor, the whole model, or
            nothing, as it is not needed ("chunk").
        keeps: says, from the parameters, whether the result is the first model's tensor as it is.
        rows: says, from the parameters, whether chunks must be whole rows however long those are.
        statistics: what each model's checkpoint of statistics must hold: "none", "same" (a tensor
            of the same name and shape) or "gram" (of a matrix [out, in], one of [in, in]).
    """

    name: str
    combine: Combine
    parameters: tuple[Parameter, ...]
    laws: frozenset[Law]
    base: Literal["none", "optional", "required", "first"] = "none"
    models: tuple[int, int | None] = (1, None)
    check: Check = lambda parameters: None
    measure: Measure | None = None
    scope: Callable[[Mapping[str, Any]], Scope] = lambda parameters: "tensor"
    rows: Callable[[Mapping[str, Any]], bool] = lambda parameters: False
    keeps: Callable[[Mapping[str, Any]], bool] = lambda parameters: False
    statistics: Literal["none", "same", "gram"] = "none"

    @property
    def needs_base(self) -> bool:
        """Whether a base must be named."""
        return self.base == "required"

    @property
    def summary(self) -> str:
        """The first line of the formula's docstring."""
        return (self.combine.__doc__ or "").strip().split("\n", 1)[0]

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, if it has one."""
        return next((p for p in self.parameters if p.name == name), None)

    def describe(self) -> dict[str, Any]:
        """Everything that a user may want to know of the method, as plain data."""
        return {
            "name": self.name,
            "summary": self.summary,
            "formula": inspect.getdoc(self.combine) or "",
            "base": self.base,
            "models": list(self.models),
            "parameters": [dict(vars(parameter)) for parameter in self.parameters],
            "laws": sorted(law.name.lower() for law in self.laws),
        }

    def keywords(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Parameter values by name, as `combine` and `measure` take them."""
        return {p.keyword: values[p.name] for p in self.parameters if p.kind != "checkpoint"}

    @cached_property
    def _read_first(self) -> frozenset[str]:
        """The keywords of the parameters that `measure` takes."""
        return frozenset(inspect.signature(self.measure).parameters if self.measure else ())

    def read_first(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the parameters, by name, on which the first pass depends."""
        return {p.name: values[p.name] for p in self.parameters if p.keyword in self._read_first}

    def reach(self, values: Mapping[str, Any]) -> Scope:
        """What the first pass looks at; "chunk" where there is none."""
        return "chunk" if self.measure is None else self.scope(values)

    def first_pass(self, whole: Whole, values: Mapping[str, Any]) -> Any:
        """What `measure` gives; None where nothing is measured."""
        if self.measure is None or self.reach(values) == "chunk" or not whole.numel:
            return None
        keywords = self.keywords(values)
        with np.errstate(all="ignore"):  # what is not finite is counted in the result
            return self.measure(
                whole, **{k: keywords[k] for k in keywords if k in self._read_first}
            )

    def merge(self, chunk: Chunk, measured: Any, values: Mapping[str, Any]) -> Array:
        """What `combine` gives for a chunk: [k] float32."""
        with np.errstate(all="ignore"):
            return self.combine(chunk, measured, **self.keywords(values))

    def run(self, whole: Whole, values: Mapping[str, Any]) -> list[Array]:
        """Both passes: the results in the order of the chunks."""
        measured = self.first_pass(whole, values)
        return whole.map(lambda chunk: self.merge(chunk, measured, values))

    def __call__(
        self,
        tensors: Any,
        base: Any = None,
        *,
        statistics: Any = None,
        **parameters: Any,
    ) -> Any:
        """Merge whole tensors, for the REPL and the tests.

        Args:
            tensors: [n, *shape], or a sequence of n of [*shape]; of torch or numpy, any floating
                dtype, or lists of numbers.
            base: [*shape], for the methods that need it.
            statistics: [n, *shape] for `fisher`, n of [in, in] for `regmean`.
            **parameters: by name (`lambda` as `lambda_`); a per-model one may be a sequence of n.

        Returns:
            [*shape], of the same library and in the dtype of `tensors`; of lists, a numpy array.

        Raises:
            TypeError: a parameter that the method does not take, one that it lacks, or no tensor.
            ValueError: a value out of range, or too few or too many tensors.
            ShapeMismatch: shapes that do not fit.
        """
        from modelglue.merge.memory import merge_tensors

        return merge_tensors(self, tensors, base, statistics=statistics, parameters=parameters)


METHODS: Registry[Method] = Registry("merge method", "modelglue.merge.methods")


def merge_method(
    *,
    parameters: tuple[Parameter, ...],
    laws: set[Law],
    base: Literal["none", "optional", "required", "first"] = "none",
    models: tuple[int, int | None] = (1, None),
    check: Check = lambda parameters: None,
    measure: Measure | None = None,
    scope: Callable[[Mapping[str, Any]], Scope] = lambda parameters: "tensor",
    rows: Callable[[Mapping[str, Any]], bool] = lambda parameters: False,
    keeps: Callable[[Mapping[str, Any]], bool] = lambda parameters: False,
    statistics: Literal["none", "same", "gram"] = "none",
) -> Callable[[Combine], Method]:
    """Register the decorated formula as the method of that name; see `Method` for the arguments."""

    def enter(combine: Combine) -> Method:
        name = combine.__name__
        method = Method(
            name,
            combine,
            parameters,
            frozenset(laws),
            base=base,
            models=models,
            check=check,
            measure=measure,
            scope=scope,
            rows=rows,
            keeps=keeps,
            statistics=statistics,
        )
        return METHODS.register(name)(method)

    return enter
