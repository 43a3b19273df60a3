"""Devices that are pretended: all is computed on the CPU, and each tensor knows where it would be.

What brings tensors of two devices together fails as it does between GPUs. They are called cpu:0,
cpu:1, … as much code asks for a device's type.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

HOME = "cpu"
_MOVES = ("copy_", "cpu", "_has_compatible_shallow_copy_type")
_INDEXES = ("__getitem__", "__setitem__")


def stand(module: nn.Module, device: str) -> None:
    """Let a module stand on a device, and be brought what it is given, as accelerate's hooks do."""
    for tensor in (*module.parameters(), *module.buffers()):
        _put(tensor, device)
    module.register_forward_pre_hook(
        lambda _, given, named: (_moved(given, device), _moved(named, device)), with_kwargs=True
    )


def place(tensor: Tensor) -> str:
    """Where a tensor would be."""
    found: str = getattr(tensor, "_pretended", HOME)
    return found


class Pretended(TorchFunctionMode):
    """While it lasts devices are pretended."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device(place(args[0]))
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            _put(args[0], place(args[1]))
            return func(*args)
        if name == "to":
            return _to(*args, **named)
        given = [*_tensors(args), *_tensors(named)]
        if name == "numpy" and place(given[0]) != HOME:
            raise TypeError(f"can't convert a tensor of {place(given[0])} to numpy")
        device = named.pop("device", None)
        if name in _MOVES:
            where = HOME if name == "cpu" else place(args[0])
        else:
            where = _common(name, given, free=given[1:] if name in _INDEXES else ())
        out = func(*args, **named)
        for tensor in _tensors((out,)):
            _put(tensor, where if device is None else str(device))
        return out


def _common(name: str, given: list[Tensor], free: Any) -> str:
    """The one device of those that are given; numbers, and indices of the CPU, go everywhere."""
    places = [
        place(tensor)
        for tensor in given
        if place(tensor) != HOME or not (tensor.dim() == 0 or any(tensor is one for one in free))
    ]
    found = sorted(set(places))
    if len(found) > 1:
        raise RuntimeError(f"{name}: expected all tensors on one device, found {found}")
    return places[0] if places else HOME


def _to(tensor: Tensor, *args: Any, **named: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        args, named = (place(args[0]), args[0].dtype), named
    copy = named.pop("copy", False)
    # torch itself knows one CPU alone, but any number of devices of another sort.
    args = tuple(map(_spelt, args))
    named = {key: _spelt(value) for key, value in named.items()}
    device, dtype, *_ = torch._C._nn._parse_to(*args, **named)
    where = place(tensor) if device is None else str(device).replace("meta", HOME)
    out = tensor if dtype is None else tensor.to(dtype)
    if out is tensor and (copy or where != place(tensor)):
        out = tensor.clone()
    return _put(out, where)


def _spelt(value: Any) -> Any:
    ours = str(value).startswith(f"{HOME}:")
    return torch.device(str(value).replace(HOME, "meta")) if ours else value


def _put(tensor: Tensor, device: str) -> Tensor:
    tensor._pretended = device  # type: ignore[attr-defined]
    return tensor


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(one, device) for one in value)
    return {k: _moved(v, device) for k, v in value.items()} if type(value) is dict else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif type(value) is dict:
        yield from _tensors(tuple(value.values()))
