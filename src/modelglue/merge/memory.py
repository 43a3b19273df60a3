"""Merging tensors that are in memory already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from modelglue.errors import ShapeMismatch
from modelglue.merge.arrays import Array, floats, namespace
from modelglue.merge.chunk import Chunk, Rows, ranges
from modelglue.merge.kernels.random import tensor_key
from modelglue.merge.method import Method
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
        rows: whether chunks must be whole rows.
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
        rows: bool = False,
    ) -> None:
        self.n, self.numel = models.shape
        self.shape, self.has_base = shape, base is not None
        self.statistics: Sequence[Rows] = [Held(floats(array)) for array in statistics]
        self.models, self._base, self._key = models, base, key
        self._offset = offset
        # Statistics of the tensor's own shape are cut with it.
        self._cut = [s.reshape(-1) for s in map(floats, statistics) if tuple(s.shape) == shape]
        self._width = shape[-1] if shape else 1
        self.ranges = list(ranges(self.numel, self._width, size=size, rows=rows))

    def map(self, function: Callable[[Chunk], T]) -> list[T]:
        """Apply `function` to every chunk, in order."""
        return [function(self.read(start, stop)) for start, stop in self.ranges]

    def walk(self) -> Iterator[Chunk]:
        """Every chunk, in order."""
        return (self.read(start, stop) for start, stop in self.ranges)

    def chunk(self, index: int) -> Chunk:
        """One chunk again."""
        return self.read(*self.ranges[index])

    def read(self, start: int, stop: int) -> Chunk:
        """The entries from `start` to before `stop`; for numpy as views."""
        return self._chunk(slice(start, stop), start)

    def sample(self, count: int) -> Chunk:
        """Every so many-th entry."""
        step = max(1, self.numel // max(count, 1))
        return replace(self._chunk(slice(0, None, step), 0), at=np.arange(0, self.numel, step))

    def _chunk(self, part: slice, start: int) -> Chunk:
        statistics = None
        if self._cut:
            statistics = namespace(self._cut[0]).stack([array[part] for array in self._cut])
        models = self.models[:, part]
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
        tensors: [n, *shape] or n of [*shape], of numpy, torch or lists of numbers.
        base: [*shape] or None.
        statistics: n arrays, for methods that need them.
        parameters: by keyword.
        chunk: entries that are worked on at a time; the result does not depend on it.
        name: of the tensor, which random methods draw by.
    """
    asked = prepare(
        method,
        tensors,
        base,
        statistics=statistics,
        parameters=parameters,
        chunk=chunk,
        name=name,
    )
    return asked.merge(method.first_pass(asked.whole, asked.values))


@dataclass(frozen=True)
class Asked:
    """A merge of tensors that are in memory, checked.

    Attributes:
        method: how.
        whole: what the method sees.
        values: of all its parameters.
        example: a tensor of the library and dtype that the result shall have.
    """

    method: Method
    whole: InMemory
    values: Mapping[str, Any]
    example: Any

    def merge(self, measured: Any) -> Any:
        """The result, given what the method measured."""
        whole = self.whole
        merged = whole.map(lambda chunk: self.method.merge(chunk, measured, self.values))
        xp = namespace(whole.models)
        flat = xp.concatenate(merged) if merged else xp.zeros(0)
        return _restore(flat, self.example, whole.shape, self.example.dtype)


def prepare(
    method: Method,
    tensors: Any,
    base: Any = None,
    *,
    statistics: Any = None,
    parameters: Mapping[str, Any],
    chunk: int | None = None,
    name: str = "",
    offset: int = 0,
) -> Asked:
    """Check a merge and lay its tensors out; the arguments are those of `merge_tensors`.

    Raises:
        ShapeMismatch: shapes differ.
        TypeError: what is given is no floating-point tensor, or something is lacking.
        ValueError: a value out of range, or too few or too many tensors.
    """
    models = [_tensor(tensor) for tensor in tensors]
    if not models:
        raise ValueError("there is no tensor to merge")
    base = None if base is None else _tensor(base)
    shape = tuple(models[0].shape)
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
        statistics=[_tensor(each) for each in statistics] if statistics is not None else (),
        offset=offset,
        size=chunk,
        rows=method.rows(values),
    )
    return Asked(method, whole, values, models[0])


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
        listed = list(given) if isinstance(given, list | tuple) else [given]
        every = [value.item() if hasattr(value, "item") else value for value in listed]
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


def _tensor(given: Any) -> Any:
    """An array of numpy or a tensor of torch as it is, lists of numbers as float32."""
    if isinstance(given, list | tuple):
        return np.asarray(given, np.float32)
    dtype = given.dtype if hasattr(given, "reshape") else type(given).__name__
    if not hasattr(given, "reshape") or "float" not in str(dtype):
        raise TypeError(f"tensors of floating-point numbers can be merged, not {dtype}")
    return given


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
