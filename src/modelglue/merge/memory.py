"""Merging what is in memory already: tensors in a REPL, whole state dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from modelglue.errors import MergeError, ShapeMismatch
from modelglue.merge.arrays import Array, floats, namespace
from modelglue.merge.chunk import Chunk, Rows, ranges
from modelglue.merge.kernels.random import tensor_key
from modelglue.merge.method import METHODS, Method
from modelglue.registry import nearest

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class InMemory:
    """A whole of arrays that are in memory: the same chunks as an executor makes.

    Args:
        models: [n, numel]: numpy float32 or uint16 (bfloat16's bits), or torch in any dtype.
        base: [numel], of the same sort, or None.
        shape: of the tensor.
        key: for random methods.
        statistics: one a model: [numel] float32, or [in, in].
        offset: entries of the tensors before, where a whole model is measured.
        size: entries of a chunk.
    """

    def __init__(
        self,
        models: Array,
        base: Array | None,
        shape: tuple[int, ...],
        *,
        key: int = 0,
        statistics: Sequence[Array] = (),
        offset: int = 0,
        size: int | None = None,
    ) -> None:
        self.n, self.numel = models.shape
        self.shape = shape
        self.statistics: Sequence[Rows] = [Held(floats(array)) for array in statistics]
        self._models, self._base, self._key = models, base, key
        self._offset = offset
        # Statistics of the tensor's own shape are cut with it.
        self._cut = [s.reshape(-1) for s in map(floats, statistics) if tuple(s.shape) == shape]
        self._width = shape[-1] if shape else 1
        self.ranges = list(ranges(self.numel, self._width, size=size))

    def map(self, function: Callable[[Chunk], T]) -> list[T]:
        """Apply `function` to every chunk, in order."""
        return [function(self.read(start, stop)) for start, stop in self.ranges]

    def chunk(self, index: int) -> Chunk:
        """One chunk again."""
        return self.read(*self.ranges[index])

    def read(self, start: int, stop: int) -> Chunk:
        """The entries from `start` to before `stop`; for numpy as views."""
        return self._chunk(slice(start, stop), start)

    def sample(self, count: int) -> Chunk:
        """Every so many-th entry."""
        return self._chunk(slice(0, None, max(1, self.numel // max(count, 1))), 0)

    def _chunk(self, part: slice, start: int) -> Chunk:
        statistics = None
        if self._cut:
            statistics = namespace(self._cut[0]).stack([array[part] for array in self._cut])
        models = self._models[:, part]
        base = None if self._base is None else self._base[part]
        if not isinstance(models, np.ndarray):
            models, base = models.float(), None if base is None else base.float()
        return Chunk(models, base, start, self._width, self._key, statistics, self._offset)


class Held:
    """A matrix of statistics in memory."""

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.array.shape)

    def read(self, start: int, stop: int) -> Array:
        """Some of its rows."""
        return self.array[start:stop]


def merge_tensors(
    method: Method,
    tensors: Any,
    base: Any = None,
    *,
    statistics: Any = None,
    parameters: Mapping[str, Any],
    chunk: int | None = None,
    name: str = "",
) -> Any:
    """Merge n tensors of one shape: what calling a method does; see `Method.__call__`.

    Args:
        method: how.
        tensors: [n, *shape] or n of [*shape], of numpy or torch.
        base: [*shape] or None.
        statistics: n arrays, for methods that need them.
        parameters: by keyword.
        chunk: entries that are worked on at a time; the result does not depend on it.
        name: of the tensor, which random methods draw by.
    """
    models = list(tensors)
    shape, dtype = tuple(models[0].shape), models[0].dtype
    for other in [*models, *([] if base is None else [base])]:
        if tuple(other.shape) != shape:
            raise ShapeMismatch(f"tensors of shapes {list(shape)} and {list(other.shape)}")
    if method.base == "first" and base is not None:
        models, base = [base, *models], None
    values = resolve(method, parameters, len(models))
    if method.base == "required" and base is None:
        raise TypeError(f"{method.name} needs a base")
    if (method.statistics != "none") != (statistics is not None):
        wants = "needs" if statistics is None else "takes no"
        raise TypeError(f"{method.name} {wants} statistics")
    least, most = method.models
    if not least <= len(models) <= (most or len(models)):
        raise ValueError(f"{method.name} takes {least} to {most or 'any number of'} tensors")
    whole = InMemory(
        _stack(models),
        None if base is None or method.base == "none" else _flat(base),
        shape,
        key=tensor_key(int(values.get("seed") or 0), name),
        statistics=list(statistics) if statistics is not None else (),
        size=chunk,
    )
    merged = method.run(whole, values)
    xp = namespace(merged[0]) if merged else namespace(whole._models)
    flat = xp.concatenate(merged) if merged else xp.zeros(0)
    return _restore(flat, models[0], shape, dtype)


def merge_state_dicts(
    state_dicts: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None = None,
    *,
    method: str = "linear",
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge models that are held in memory, tensor by tensor.

    Args:
        state_dicts: n of them, of the same names and shapes.
        base: the same of the base, for the methods that need it.
        method: any of `modelglue methods`.
        **parameters: of the method, by name (`lambda` as `lambda_`).

    Returns:
        A new state dict in the dtypes of the first. What is no floating-point tensor is the
        first's.

    Raises:
        MergeError: names or shapes differ, or a result is not finite.
    """
    formula = METHODS[method]
    first = state_dicts[0]
    for other in [*state_dicts[1:], *([] if base is None else [base])]:
        if other.keys() != first.keys():
            odd = sorted(other.keys() ^ first.keys())[0]
            raise MergeError(f"{odd}: not every model has it")
    merged: dict[str, Tensor] = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            merged[name] = tensor.clone()
            continue
        try:
            result: Tensor = merge_tensors(
                formula,
                [state[name] for state in state_dicts],
                None if base is None else base[name],
                parameters=parameters,
                name=name,
            )
        except ShapeMismatch as error:
            raise ShapeMismatch(f"{name}: {error}") from None
        if not bool(result.isfinite().all()):
            raise MergeError(f"{name}: the result is not finite")
        merged[name] = result
    return merged


def resolve(method: Method, parameters: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Keyword arguments as parameter values: defaults filled in, one a model where it is so.

    Raises:
        TypeError: a name that the method does not have, or a value that it lacks.
        ValueError: a value out of range, or values that do not go together.
    """
    known = {p.keyword: p for p in method.parameters}
    for keyword in parameters:
        if keyword not in known:
            close = nearest(keyword, known)
            raise TypeError(f"{method.name} takes no parameter {keyword!r}{close}")
    values: dict[str, Any] = {}
    for keyword, parameter in known.items():
        given = parameters.get(keyword, parameter.default)
        if given is None and not parameter.optional and parameter.kind != "checkpoint":
            raise TypeError(f"{keyword} must be given: {parameter.help}")
        if hasattr(given, "tolist"):
            given = given.tolist()
        every = list(given) if isinstance(given, list | tuple) else [given]
        if parameter.per == "model" and len(every) == 1:
            every = every * n
        for value in every:
            if (trouble := parameter.problem(value)) and parameter.kind != "checkpoint":
                raise ValueError(f"{keyword}: {trouble}")
        if len(every) != (n if parameter.per == "model" else 1):
            raise ValueError(f"{keyword}: {len(every)} values for {n} tensors")
        values[parameter.name] = tuple(every) if parameter.per == "model" else every[0]
    if trouble := method.check(values):
        raise ValueError(trouble)
    return values


def as_array(tensor: Tensor) -> np.ndarray:
    """A torch tensor of the CPU as the kernels take it: bfloat16 as its bits, else float32."""
    import torch

    if tensor.dtype == torch.bfloat16:
        bits: np.ndarray = tensor.detach().view(torch.uint16).numpy()
        return bits
    numbers: np.ndarray = tensor.detach().float().numpy()
    return numbers


def _flat(tensor: Any) -> Array:
    """[numel], float32 (of numpy, or of torch elsewhere than on the CPU)."""
    flat = tensor.reshape(-1)
    if isinstance(flat, np.ndarray):
        return floats(flat)
    if flat.device.type == "cpu":
        return as_array(flat.float())
    return flat.float()


def _stack(tensors: Sequence[Any]) -> Array:
    flat = [_flat(tensor) for tensor in tensors]
    return namespace(flat[0]).stack(flat)


def _restore(flat: Array, example: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    if isinstance(example, np.ndarray):
        return flat.astype(dtype).reshape(shape)
    import torch

    return torch.as_tensor(flat).reshape(shape).to(dtype)
