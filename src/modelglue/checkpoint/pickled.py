"""`pytorch_model.bin`: a pickle that says which tensors there are, and their bytes beside it.

The pickle is walked and never run (see `pickle_walk`). What comes of it is a place in the file for
every tensor, as from a safetensors header, so that these files are opened lazily too, and without
torch. Both forms of `torch.save` are read: the zip archive, and the one before PyTorch 1.6.
"""

import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

from modelglue.checkpoint.files import LARGEST_JSON, open_regular
from modelglue.checkpoint.pickle_walk import Machine, Refused, View
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
        except Refused as error:
            raise UnsupportedCheckpoint(f"{path}: {error}") from None
        except (*_DAMAGE, OSError) as error:
            raise CorruptCheckpoint(
                f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}). Fetch it again."
            ) from None
    return tensors, status


# key of a storage → (position in the file, bytes)
_Places = dict[str, tuple[int, int]]


def _read_zip(file: IO[bytes]) -> tuple[dict[str, View], _Places]:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("the archive does not hold one data.pkl")
        folder = names[0].removesuffix("data.pkl")
        if "byteorder" in {name.removeprefix(folder) for name in archive.namelist()}:
            order = _stored(archive, folder + "byteorder", limit=16)
            if order.strip() != b"little":
                raise Refused("its numbers are big-endian. Save the model as safetensors.")
        pickle = io.BytesIO(_stored(archive, names[0], limit=LARGEST_JSON))
        views = _state_dict(Machine(pickle).run())
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


def _read_legacy(file: IO[bytes]) -> tuple[dict[str, View], _Places]:
    file.seek(0)
    if Machine(file).run() != _LEGACY_MAGIC or Machine(file).run() != 1001:
        raise ValueError("not the version of the format that is known")
    system = Machine(file).run()
    if system.get("little_endian") is not True:
        raise Refused("its numbers are big-endian. Save the model as safetensors.")
    machine = Machine(file)
    views = _state_dict(machine.run())
    places: _Places = {}
    keys = Machine(file).run()
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


def _state_dict(value: Any) -> dict[str, View]:
    if not isinstance(value, dict):
        raise Refused("it holds no dictionary of tensors. Save the model's state_dict.")
    for name, view in value.items():
        if not isinstance(view, View):
            raise Refused(f"{name}: not a tensor. Save the model's state_dict alone.")
    return value


def _check_places(places: _Places, size: int) -> None:
    at = 0
    for position, nbytes in sorted(places.values()):
        if position < at or position + nbytes > size:
            raise ValueError("storages overlap, or the file ends before they do")
        at = position + nbytes


def _spec(name: str, view: View, places: _Places, path: Path) -> TensorSpec:
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


def _is_dense(view: View) -> bool:
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in view.shape
        expected *= size
    return True
