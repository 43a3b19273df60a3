"""A pickle walked opcode by opcode: what it says of tensors is kept, nothing in it is called.

Of all that a pickle can name, the few things that describe tensors are understood. Anything else
is refused, so it does not matter what it would do.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from modelglue.checkpoint.files import LARGEST_JSON

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8",
}
_DTYPES = {
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
}


class Refused(Exception):
    """The pickle asks for more than tensors."""


@dataclass(frozen=True)
class _Global:
    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """A run of elements of one dtype, named by its key."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class View:
    """A tensor: a part of a storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Machine:
    """Walks one pickle that begins where the file stands; `run` says what it describes.

    Attributes:
        storages: those that were named, by key.
    """

    def __init__(self, file: IO[bytes]) -> None:
        bounded: Any = _Bounded(file)
        self._operations = pickletools.genops(bounded)
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """What the pickle describes."""
        for operation, argument, _ in self._operations:
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if name in _PUSH:
                self._stack.append(_PUSH[name](argument))
            elif name in ("PROTO", "FRAME"):
                pass
            else:
                step = getattr(self, f"_do_{name.lower()}", None)
                if step is None:
                    raise Refused(
                        f"its pickle uses {name}, which tensors need not. Pickled code is never "
                        "run; save the model as safetensors."
                    )
                step(argument)
        raise EOFError("the pickle does not end")

    def _since_mark(self) -> list[Any]:
        at = self._marks.pop()
        found = self._stack[at:]
        del self._stack[at:]
        return found

    def _do_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_binput(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _do_long_binput = _do_put = _do_binput

    def _do_binget(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _do_long_binget = _do_get = _do_binget

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _do_tuple1(self, _: Any) -> None:
        self._fold(1)

    def _do_tuple2(self, _: Any) -> None:
        self._fold(2)

    def _do_tuple3(self, _: Any) -> None:
        self._fold(3)

    def _fold(self, count: int) -> None:
        items = tuple(self._stack.pop() for _ in range(count))
        self._stack.append(items[::-1])

    def _do_append(self, _: Any) -> None:
        item = self._stack.pop()
        _a(list, self._stack[-1]).append(item)

    def _do_appends(self, _: Any) -> None:
        items = self._since_mark()
        _a(list, self._stack[-1]).extend(items)

    def _do_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = _a(dict, self._stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_a(str, key)] = value

    def _do_global(self, argument: str) -> None:
        self._stack.append(_known(*argument.split(" ", 1)))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_known(_a(str, module), _a(str, name)))

    def _do_binpersid(self, _: Any) -> None:
        kind, sort, key, _location, numel, *rest = self._stack.pop()
        if kind != "storage" or (rest and rest[0] is not None):
            raise Refused("it shares parts of storages in a way that is not read.")
        dtype = _STORAGES[_a(_Global, sort).name]
        storage = Storage(_a(str, key), dtype, _size(numel))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {key} is described twice")
        self._stack.append(storage)

    def _do_reduce(self, _: Any) -> None:
        arguments, function = _a(tuple, self._stack.pop()), _a(_Global, self._stack.pop())
        build = _BUILD.get((function.module, function.name))
        if build is None:
            raise Refused(f"its pickle wants to call {function.name}. Pickled code is never run.")
        self._stack.append(build(*arguments))

    def _do_build(self, _: Any) -> None:
        # The attribute `_metadata` that state_dict() hangs onto its OrderedDict.
        self._stack.pop()
        _a(dict, self._stack[-1])


def _a(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} was expected in the pickle")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("a size in the pickle is negative or absurd")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = tuple(_size(size) for size in _a(tuple, value))
    if len(sizes) > 64:
        raise ValueError("a tensor in the pickle has too many dimensions")
    return sizes


def _view(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: str | None = None
) -> View:
    storage = _a(Storage, storage)
    sizes, steps = _sizes(shape), _sizes(strides)
    if len(sizes) != len(steps):
        raise ValueError("a tensor in the pickle has other dimensions than strides")
    return View(storage, dtype or storage.dtype, _size(offset), sizes, steps)


def _view_of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> View:
    return _view(storage, offset, shape, strides, dtype=_DTYPES[_a(_Global, dtype).name])


def _parameter(view: Any, *_: Any) -> View:
    return _a(View, view)  # type: ignore[no-any-return]


def _ordered(*arguments: Any) -> dict[str, Any]:
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return {}


_BUILD: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_tensor_v3"): _view_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _sizes,
}
_PUSH: dict[str, Callable[[Any], Any]] = {
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "NONE": lambda _: None,
    **dict.fromkeys(
        [
            "BININT",
            "BININT1",
            "BININT2",
            "LONG1",
            "LONG4",
            "BINFLOAT",
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE8",
        ],
        lambda argument: argument,
    ),
}


def _known(module: str, name: str) -> _Global:
    is_storage = module in ("torch", "torch.storage") and name in _STORAGES
    if (module, name) in _BUILD or is_storage or (module == "torch" and name in _DTYPES):
        return _Global(module, name)
    raise Refused(
        f"its pickle names {module}.{name}, which is no tensor. Pickled code is never run; save "
        "the model as safetensors."
    )


class _Bounded:
    """A file whose reads are refused when a damaged length asks for too much."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= LARGEST_JSON:
            raise ValueError(f"a piece of {count} bytes in the pickle")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(LARGEST_JSON)
