"""Inputs and parameter values for any merge method, made from what it declares."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modelglue.merge.kernels.random import tensor_key
from modelglue.merge.memory import InMemory, merge_tensors, resolve
from modelglue.merge.method import METHODS, Method, Parameter

ALL = [METHODS[name] for name in METHODS]
SIZES = [(1,), (7,), (5, 3), (2, 3, 4), (16, 12)]

# What the rule below would make a bad value of.
PER_MERGE = {"t": 0.3, "lambda": 0.7, "select_topk": 0.5, "seed": 3, "max_iter": 4, "tol": 1e-4}
PER_MODEL = {"epsilon": 0.1}


@dataclass(frozen=True)
class Sample:
    """Inputs of one merge: [n, *shape], [*shape] or None, and statistics or None."""

    tensors: np.ndarray
    base: np.ndarray | None
    statistics: np.ndarray | None

    def merge(self, method: Method, chunk: int = 1 << 19, **values: Any) -> np.ndarray:
        merged: np.ndarray = merge_tensors(
            method,
            self.tensors,
            self.base,
            statistics=self.statistics,
            parameters=values,
            chunk=chunk,
        )
        return merged

    def whole(self, kind: type[InMemory], convert: Any, values: Any, size: int) -> InMemory:
        """The same as a whole of chunks, of arrays that `convert` makes."""
        flat = convert(self.tensors.reshape(len(self.tensors), -1))
        base = None if self.base is None else convert(self.base.reshape(-1))
        statistics = [] if self.statistics is None else [*map(convert, self.statistics)]
        key = tensor_key(int(values.get("seed", 0)), "")
        shape = self.tensors.shape[1:]
        return kind(flat, base, shape, key=key, statistics=statistics, size=size)

    def but(self, tensors: np.ndarray, base: np.ndarray | None = None) -> "Sample":
        return replace(self, tensors=tensors, base=None if self.base is None else base)


def samples(method: Method, seed: int, shape: tuple[int, ...], scale: float = 1.0) -> list[Sample]:
    """With a base, without, or both, as the method takes it.

    Numbers are multiples of 1/512, so that sums of two are exact and a law is not broken by
    rounding at a cut.
    """
    generator = np.random.default_rng(seed)

    def numbers(*size: int) -> np.ndarray:
        return (np.round(generator.normal(size=size) * scale * 512) / 512).astype(np.float32)

    n = method.models[1] or max(method.models[0], 3)
    tensors, base, statistics = numbers(n, *shape), numbers(*shape), None
    if method.statistics == "same":
        statistics = np.abs(numbers(n, *shape)) + np.float32(0.01)
    elif method.statistics == "gram":
        seen = numbers(n, shape[-1], 2 * shape[-1])
        statistics = seen @ seen.transpose(0, 2, 1)
    bases = {"required": [base], "optional": [base, None]}.get(method.base, [None])
    return [Sample(tensors, each, statistics) for each in bases]


def uneven(method: Method, n: int) -> dict[str, Any]:
    """Parameters off their defaults, and different for every model."""
    values: dict[str, Any] = {}
    for p in method.parameters:
        if p.per == "model" and p.kind == "number":
            values[p.keyword] = [PER_MODEL.get(p.name, 0.2 + 0.5 * i / n) for i in range(n)]
        elif p.name in PER_MERGE:
            values[p.keyword] = PER_MERGE[p.name]
    return values


def variants(method: Method, n: int) -> list[dict[str, Any]]:
    """The defaults, uneven values, these with each switch turned, and with all of them turned."""
    turned = {p.keyword: other(p) for p in method.parameters if p.kind in ("boolean", "choice")}
    plain = uneven(method, n)
    each = [plain | {name: value} for name, value in turned.items()]
    return [{}, plain, *each, plain | turned]


def other(parameter: Parameter) -> Any:
    if parameter.kind == "boolean":
        return not parameter.default
    return next(choice for choice in parameter.choices if choice != parameter.default)


def run(method: Method, whole: InMemory, values: dict[str, Any]) -> np.ndarray:
    """What `merge_tensors` does, over a whole that was made elsewhere."""
    parts = method.run(whole, resolve(method, values, whole.n))
    return np.concatenate([np.asarray(part) for part in parts])
