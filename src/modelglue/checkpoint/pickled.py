"""`pytorch_model.bin`: a pickle that says which tensors there are, and their bytes beside it.

The pickle is walked opcode by opcode and nothing in it is ever called: of all that a pickle can
name, the few things that describe tensors are understood, and anything else is refused. What
remains is a place in the file for every tensor, as in a safetensors header, so that these files
are opened lazily too and without torch. Both forms of `torch.save` are read: the zip archive, and
the one before PyTorch 1.6.
"""

import io
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from modelglue.checkpoint.files import LARGEST_JSON, open_regular
from modelglue.checkpoint.spec import BITS, TensorSpec, nbytes_of
from modelglue.errors import CorruptCheckpoint, UnsupportedCheckpoint

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
# Whatever the interpreter of a damaged pickle can trip over.
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    EOFError,
    NotImplementedError,
    RecursionError,
    struct.error,
    zipfile.BadZipFile,
)
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


def read_pickled(path: Path) -> tuple[dict[str, TensorSpec], os.stat_result]:
    """The tensors of a `.bin` file, and the file's status.

    Raises:
        CorruptCheckpoint: the file is damaged.
        UnsupportedCheckpoint: its pickle names anything but tensors.
    """
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        try:
            start = file.read(len(_LEGACY_START))
            if start.startswith(_ZIP_MAGIC):
                views, places = _read_zip(file)
            elif start == _LEGACY_START:
                views, places = _read_legacy(file)
            else:
                raise UnsupportedCheckpoint(
                    f"{path} is no file of torch.save, or too old a one. Save the model as "
                    "safetensors."
                )
            _check_places(places, status.st_size)
            tensors = {name: _spec(name, view, places, path) for name, view in views.items()}
        except _Refused as error:
            raise UnsupportedCheckpoint(f"{path}: {error}") from None
        except (*_DAMAGE, OSError) as error:
            raise CorruptCheckpoint(
                f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}). Fetch it again."
            ) from None
    return tensors, status


class _Refused(Exception):
    """The pickle asks for more than tensors."""


@dataclass(frozen=True)
class _Global:
    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class _View:
    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# key of a storage → (position in the file, bytes)
_Places = dict[str, tuple[int, int]]


def _read_zip(file: IO[bytes]) -> tuple[dict[str, _View], _Places]:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("the archive does not hold one data.pkl")
        folder = names[0].removesuffix("data.pkl")
        if "byteorder" in {name.removeprefix(folder) for name in archive.namelist()}:
            order = _stored(archive, folder + "byteorder", limit=16)
            if order.strip() != b"little":
                raise _Refused("its numbers are big-endian. Save the model as safetensors.")
        pickle = io.BytesIO(_stored(archive, names[0], limit=LARGEST_JSON))
        views = _state_dict(_Machine(pickle).run())
        places = {
            storage.key: _place_in_zip(file, archive.getinfo(f"{folder}data/{storage.key}"))
            for storage in {view.storage.key: view.storage for view in views.values()}.values()
        }
    return views, places


def _stored(archive: zipfile.ZipFile, name: str, *, limit: int) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
        raise ValueError(f"{name} is compressed or too large")
    return archive.read(info)


def _place_in_zip(file: IO[bytes], info: zipfile.ZipInfo) -> tuple[int, int]:
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"{info.filename} is compressed")
    # The central directory does not tell how long the local header's own extra field is.
    file.seek(info.header_offset)
    local = file.read(30)
    if not local.startswith(_ZIP_MAGIC):
        raise ValueError(f"{info.filename} is not where the archive's directory says")
    name, extra = struct.unpack_from("<HH", local, 26)
    if file.read(name) != info.filename.encode():
        raise ValueError(f"{info.filename} is not where the archive's directory says")
    return info.header_offset + 30 + name + extra, info.file_size


def _read_legacy(file: IO[bytes]) -> tuple[dict[str, _View], _Places]:
    file.seek(0)
    if _Machine(file).run() != _LEGACY_MAGIC or _Machine(file).run() != 1001:
        raise ValueError("not the version of the format that is known")
    system = _Machine(file).run()
    if system.get("little_endian") is not True:
        raise _Refused("its numbers are big-endian. Save the model as safetensors.")
    machine = _Machine(file)
    views = _state_dict(machine.run())
    places: _Places = {}
    keys = _Machine(file).run()
    at = file.tell()
    for key in keys:
        storage = machine.storages[key]
        file.seek(at)
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storage.numel:
            raise ValueError(f"storage {key} has {numel} elements instead of {storage.numel}")
        places[key] = (at + 8, nbytes_of(storage.dtype, (numel,)))
        at += 8 + places[key][1]
    return views, places


def _state_dict(value: Any) -> dict[str, _View]:
    if not isinstance(value, dict):
        raise _Refused("it holds no dictionary of tensors. Save the model's state_dict.")
    for name, view in value.items():
        if not isinstance(view, _View):
            raise _Refused(f"{name}: not a tensor. Save the model's state_dict alone.")
    return value


def _check_places(places: _Places, size: int) -> None:
    at = 0
    for position, nbytes in sorted(places.values()):
        if position < at or position + nbytes > size:
            raise ValueError("storages overlap, or the file ends before they do")
        at = position + nbytes


def _spec(name: str, view: _View, places: _Places, path: Path) -> TensorSpec:
    position, available = places[view.storage.key]
    width = BITS[view.dtype] // 8
    reach = view.offset
    if 0 not in view.shape:
        steps = zip(view.shape, view.strides, strict=True)
        reach += 1 + sum((n - 1) * step for n, step in steps)
    if nbytes_of(view.storage.dtype, (view.storage.numel,)) != available:
        raise ValueError(f"{name}: its storage has {available} bytes, which is not what it says")
    if reach * width > available or math.prod(view.shape) * width > available:
        raise ValueError(f"{name}: reaches beyond its storage")
    return TensorSpec(
        name,
        view.dtype,
        view.shape,
        path,
        position + view.offset * width,
        nbytes_of(view.dtype, view.shape),
        None if _is_dense(view) else view.strides,
    )


def _is_dense(view: _View) -> bool:
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in view.shape
        expected *= size
    return True


class _Machine:
    """Walks one pickle and builds descriptions of tensors; calls nothing that it names."""

    def __init__(self, file: IO[bytes]) -> None:
        bounded: Any = _Bounded(file)
        self._operations = pickletools.genops(bounded)
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}

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
                    raise _Refused(
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
            raise _Refused("it shares parts of storages in a way that is not read.")
        dtype = _STORAGES[_a(_Global, sort).name]
        storage = _Storage(_a(str, key), dtype, _size(numel))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {key} is described twice")
        self._stack.append(storage)

    def _do_reduce(self, _: Any) -> None:
        arguments, function = _a(tuple, self._stack.pop()), _a(_Global, self._stack.pop())
        build = _BUILD.get((function.module, function.name))
        if build is None:
            raise _Refused(f"its pickle wants to call {function.name}. Pickled code is never run.")
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
) -> _View:
    storage = _a(_Storage, storage)
    sizes, steps = _sizes(shape), _sizes(strides)
    if len(sizes) != len(steps):
        raise ValueError("a tensor in the pickle has other dimensions than strides")
    return _View(storage, dtype or storage.dtype, _size(offset), sizes, steps)


def _view_of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> _View:
    return _view(storage, offset, shape, strides, dtype=_DTYPES[_a(_Global, dtype).name])


def _parameter(view: Any, *_: Any) -> _View:
    return _a(_View, view)  # type: ignore[no-any-return]


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
    raise _Refused(
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
