"""A model folder, opened lazily: headers are read and checked, bytes come when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from modelglue.checkpoint.files import Descriptors
from modelglue.checkpoint.fingerprint import Digesting, stamp
from modelglue.checkpoint.folder import read_folder
from modelglue.checkpoint.naming import head_and_embedding
from modelglue.checkpoint.spec import BITS, TensorSpec, torch_dtype
from modelglue.errors import TensorNotFound, UnsupportedCheckpoint
from modelglue.registry import nearest

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "TensorSpec"]

_CHUNK = 4 << 20


class Checkpoint:
    """A model on disk: its configuration and tensors, none of them read before asked for.

    Any number of threads may read. Files are closed by `close`, at the end of a `with`, or with
    the last reference.

    Attributes:
        path: the folder.
        name: the folder's name.
        ref: how it was named by whoever opened it; "org/name@commit" for a model of the Hub.
        folders: where tokenizer files and the like are, the first that has one counts.
        config: what `config.json` holds.
        tensors: name → place, dtype and shape, in the order of the files.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorSpec],
        descriptors: Descriptors,
    ) -> None:
        self.path = path
        self.name = path.name or path.resolve().name
        self.ref = str(path)
        self.folders: tuple[Path, ...] = (path,)
        self.config = MappingProxyType(dict(config))
        self.tensors = MappingProxyType(dict(tensors))
        self._descriptors = descriptors
        self._tied: bool | None = None

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a folder with `config.json` and safetensors or `.bin` weights, sharded or not.

        Raises:
            CheckpointNotFound: there is no model there.
            CorruptCheckpoint: the files contradict themselves or each other.
            UnsupportedCheckpoint: pickled code, or an unknown dtype.
        """
        folder = Path(path)
        descriptors = Descriptors()
        config, tensors = read_folder(folder, descriptors)
        return Checkpoint(folder, config, tensors, descriptors)

    @property
    def parameters(self) -> int:
        """The number of stored elements; a tied head counts once."""
        return sum(spec.numel for spec in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(spec.nbytes for spec in self.tensors.values())

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding: the config says so, and no stored head differs."""
        if self._tied is None:
            self._tied = self._find_tied()
        return self._tied

    def spec(self, name: str) -> TensorSpec:
        """The place, dtype and shape of a tensor.

        Raises:
            TensorNotFound: there is none of that name; the message has the nearest one.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise TensorNotFound(
                f"{self.name} has no tensor {name!r}{nearest(name, self.tensors)}."
            ) from None

    def read(
        self, name: str, rows: slice | None = None, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A tensor, or its rows `rows`, in its own dtype.

        Args:
            name: of the tensor.
            rows: along dimension 0, step 1; None for all.
            out: of the result's shape. When it is a contiguous CPU tensor of the same dtype, the
                bytes go straight into it; else they are copied, and cast to its dtype.

        Raises:
            TensorNotFound: there is none of that name.
            CorruptCheckpoint: the file changed or cannot be read any more.
        """
        import torch

        spec = self.spec(name)
        dtype = torch_dtype(spec.dtype)
        first, last = _row_range(spec, rows)
        shape = spec.shape if rows is None else (last - first, *spec.shape[1:])
        if out is not None and tuple(out.shape) != shape:
            raise ValueError(f"{name}: out has shape {tuple(out.shape)}, the rows have {shape}")
        direct = (
            out is not None
            and out.dtype == dtype
            and out.device.type == "cpu"
            and out.is_contiguous()
        )
        target = out if out is not None and direct else torch.empty(shape, dtype=dtype)
        self.read_into(name, tensor_bytes(target), start=first * spec.row_nbytes)
        if out is None or direct:
            return target
        return out.copy_(target)

    def read_into(self, name: str, buffer: memoryview, *, start: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes, row after row, from byte `start` on.

        Raises:
            TensorNotFound: there is none of that name.
            CorruptCheckpoint: the file changed or cannot be read any more.
        """
        spec = self.spec(name)
        flat = buffer.cast("B")
        if start < 0 or start + len(flat) > spec.nbytes:
            raise ValueError(
                f"{name}: bytes {start} to {start + len(flat)} of {spec.nbytes} were asked for"
            )
        if spec.strides is not None:
            self._gather(spec, flat, start)
        elif len(flat):
            self._descriptors.read_into(spec.file, flat, spec.offset + start)

    def as_stored(self, name: str) -> bool:
        """Whether the tensor is what its file holds at its offset, byte for byte."""
        return self.spec(name).strides is None

    def read_bytes(self, file: Path, buffer: memoryview, *, start: int) -> None:
        """Fill `buffer` with what one of the files holds from byte `start` on, whatever that is.

        Raises:
            CorruptCheckpoint: the file changed or cannot be read any more.
        """
        self._descriptors.read_into(file, buffer.cast("B"), start)

    def fingerprint(self) -> str:
        """A digest of the content: every tensor's name, dtype, shape and bytes, and the config.

        Computed once; cached under the user's cache folder by the files' paths, sizes, times and
        inodes.
        """
        return self.digesting().finish()

    def known_fingerprint(self) -> str | None:
        """The fingerprint if it was computed before and kept; nothing is read for it."""
        digesting = self.digesting()
        return None if digesting.needed else digesting.finish()

    def digesting(self) -> Digesting:
        """Collect the fingerprint from bytes that a pass over the tensors reads anyway."""
        return Digesting(self)

    def stamp(self) -> str | None:
        """What the content is remembered by without reading it; None where nothing could be."""
        files = {spec.file for spec in self.tensors.values()}
        return stamp(self.config, {file: self._descriptors.status(file) for file in files})

    def close(self) -> None:
        """Close the files; reading opens them again."""
        self._descriptors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self.tensors)} tensors>"

    def _find_tied(self) -> bool:
        head, embedding = head_and_embedding(self.tensors)
        if embedding is None:
            return False
        text = self.config.get("text_config")
        nested = text.get("tie_word_embeddings") if isinstance(text, dict) else None
        says = self.config.get("tie_word_embeddings", nested)
        if head is None:
            # Families that tie by default leave the key out of config.json.
            return says is not False
        return says is True and self._equal(head, embedding)

    def _equal(self, a: str, b: str) -> bool:
        first, second = self.spec(a), self.spec(b)
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        if (first.file, first.offset, first.strides) == (
            second.file,
            second.offset,
            second.strides,
        ):
            return True
        pairs = zip(self.chunks(a), self.chunks(b), strict=True)
        return all(x == y for x, y in pairs)

    def chunks(self, name: str, *, size: int = _CHUNK) -> Iterator[memoryview]:
        """The tensor's bytes in order, in a buffer that the next step overwrites."""
        spec = self.spec(name)
        buffer = memoryview(bytearray(min(size, spec.nbytes)))
        for start in range(0, spec.nbytes, size):
            part = buffer[: min(size, spec.nbytes - start)]
            self.read_into(name, part, start=start)
            yield part

    def _gather(self, spec: TensorSpec, flat: memoryview, start: int) -> None:
        import numpy as np

        from modelglue.checkpoint.strided import read_strided

        def read(buffer: memoryview, at: int) -> None:
            self._descriptors.read_into(spec.file, buffer, spec.offset + at)

        size = BITS[spec.dtype] // 8
        first, last = start // size, -(-(start + len(flat)) // size)
        found = np.empty(last - first, f"V{size}")
        read_strided(read, found, first, spec.shape, spec.strides or ())
        inner = start - first * size
        flat[:] = found.view(np.uint8).data[inner : inner + len(flat)]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    import torch

    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError("only a contiguous tensor on the CPU has its bytes in one piece")
    if tensor.numel() == 0:
        return memoryview(bytearray())
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _row_range(spec: TensorSpec, rows: slice | None) -> tuple[int, int]:
    if rows is None:
        return 0, spec.rows
    if not spec.shape:
        raise ValueError(f"{spec.name} is a scalar and has no rows")
    if spec.dtype not in ("F4", "F6_E2M3", "F6_E3M2") and rows.step in (None, 1):
        first, last, _ = rows.indices(spec.rows)
        return first, max(first, last)
    raise UnsupportedCheckpoint(f"{spec.name}: only whole rows of step 1 can be read, not {rows}.")
