"""What a merge method is, and the folder in which they are found.

A method is pure tensor maths on chunks: it never sees a file, a model or a name. Its parameters
are declared once, with their ranges, and serve validation, messages, search spaces and tests.
Whoever runs it reads chunks of every model in fp32, stacks them and casts the result once.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        per: "model" (one value a model, passed as a tensor [n]) or "merge" (one value).
        default: used where the configuration is silent; None means that it must be given.
        low, high: the closed range that is allowed; None where it is open.
    """

    name: str
    per: Literal["model", "merge"]
    help: str
    default: float | bool | None = None
    low: float | None = None
    high: float | None = None

    def problem(self, value: object) -> str | None:
        """Why `value` cannot be used, or None."""
        if isinstance(self.default, bool):
            return None if isinstance(value, bool) else f"{value!r} is not true or false"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{value!r} is not a number"
        if not float("-inf") < value < float("inf"):
            return f"{value!r} is not finite"
        if self.low is not None and value < self.low:
            return f"{value!r} is below {self.low}"
        if self.high is not None and value > self.high:
            return f"{value!r} is above {self.high}"
        return None


Combine = Callable[..., Tensor]
"""The maths: (chunk [n, k] fp32, base [k] or None, parameters by keyword) → [k] fp32."""


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
        needs_base: whether a base model must be named.
        models: least and greatest number of models (without the base); None where it is open.
        check: looks at parameter values together (weights that sum to 0, say).
    """

    name: str
    combine: Combine
    parameters: tuple[Parameter, ...]
    laws: frozenset[Law]
    needs_base: bool = False
    models: tuple[int, int | None] = (1, None)
    check: Check = lambda parameters: None

    @property
    def summary(self) -> str:
        """The first line of the formula's docstring."""
        return (self.combine.__doc__ or "").strip().split("\n", 1)[0]

    def describe(self) -> dict[str, Any]:
        """Everything that a user may want to know of the method, as plain data."""
        return {
            "name": self.name,
            "summary": self.summary,
            "formula": inspect.getdoc(self.combine) or "",
            "needs_base": self.needs_base,
            "parameters": [dict(vars(parameter)) for parameter in self.parameters],
            "laws": sorted(law.name.lower() for law in self.laws),
        }

    def __call__(self, tensors: Tensor, base: Tensor | None = None, **parameters: Any) -> Tensor:
        """Merge whole tensors, for the REPL and the tests.

        Args:
            tensors: [n, *shape], any floating dtype.
            base: [*shape], for the methods that need it.
            **parameters: numbers; a per-model one may be a sequence of n.

        Returns:
            [*shape] in the dtype of `tensors`.
        """
        n, shape = len(tensors), tensors.shape[1:]
        values = {
            parameter.name: self._value(parameter, parameters.pop(parameter.name, None), n)
            for parameter in self.parameters
        }
        if parameters:
            raise TypeError(f"{self.name} takes no parameter {', '.join(map(repr, parameters))}")
        flat_base = None if base is None else base.reshape(-1).float()
        merged = self.combine(tensors.reshape(n, -1).float(), flat_base, **values)
        return merged.reshape(shape).to(tensors.dtype)

    @staticmethod
    def _value(parameter: Parameter, given: Any, n: int) -> Any:
        value = parameter.default if given is None else given
        if value is None:
            raise TypeError(f"{parameter.name} must be given: {parameter.help}")
        if parameter.per == "merge":
            return value
        return torch.as_tensor(value, dtype=torch.float32).expand(n)


METHODS: Registry[Method] = Registry("merge method", "modelglue.merge.methods")


def merge_method(
    *,
    parameters: tuple[Parameter, ...],
    laws: set[Law],
    needs_base: bool = False,
    models: tuple[int, int | None] = (1, None),
    check: Check = lambda parameters: None,
) -> Callable[[Combine], Method]:
    """Register the decorated formula as the method of that name; see `Method` for the arguments."""

    def enter(combine: Combine) -> Method:
        name = combine.__name__
        method = Method(name, combine, parameters, frozenset(laws), needs_base, models, check)
        return METHODS.register(name)(method)

    return enter
