"""A LoRA adapter on its base, read as one checkpoint without building a model.

W' = W + s·BA with s = α/r, or α/√r for rank-stabilised LoRA (Hu et al., arXiv 2106.09685;
Kalajdzievski, arXiv 2312.03732), and for DoRA (Liu et al., arXiv 2402.09353) each row of W'
rescaled to its magnitude m: m·W'/‖W'‖. Everything in fp32 (fp64 if the base is), cast once to the
base's dtype. peft rounds the product of a half-precision adapter before adding it; we don't.

Where base has head and embedding tied and the adapter changes one of them, the result is untied,
as the two behave while the adapter is in use; `merge_and_unload` changes both then. With
`ensure_weight_tying` they stay tied here too, and so do tokens that were trained alone.

An adapter that was trained after tokens were added brings the embedding and the head with more (or
fewer) rows, which take the place of the base's; `vocab_size` follows them.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelglue.checkpoint.adapter import Adapter, Lookup, open_adapter
from modelglue.checkpoint.delta import Delta, Tokens
from modelglue.checkpoint.fingerprint import Digesting
from modelglue.checkpoint.naming import head_and_embedding
from modelglue.checkpoint.reader import Checkpoint, tensor_bytes
from modelglue.checkpoint.spec import TensorSpec, nbytes_of, torch_dtype
from modelglue.errors import UnsupportedCheckpoint

if TYPE_CHECKING:
    import torch

__all__ = ["LoraCheckpoint", "open_adapter"]

# Deltas are always computed for whole blocks of as many rows: a product's rounding depends on its
# size, and what a tensor holds must not depend on who asks for which rows.
_BLOCK = 256
_FLOATS = ("F16", "BF16", "F32", "F64")


class LoraCheckpoint(Checkpoint):
    """A base with an adapter on it; its tensors are merged whenever they are read.

    The file and offset of a changed tensor's spec are the base's: read through the methods.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter, *, ref: str | None = None) -> None:
        self._base, self._adapter = base, adapter
        # name → where the base's values come from, by name in base or in adapter's file
        self._sources: dict[str, str] = {name: name for name in base.tensors}
        self._replaced: dict[str, str] = {}
        self._deltas: dict[str, Delta] = {}
        self._rows: dict[str, Tokens] = {}
        config = dict(base.config)
        self._resolve(config)
        tensors = {name: self._spec(name) for name in self._sources}
        self._resize(tensors, config)
        super().__init__(base.path, config, tensors, base._descriptors)
        self.name = f"{base.name}+{adapter.name}"
        self.ref = ref if ref is not None else f"{base.ref}+{adapter.path}"
        self.folders = (adapter.path, *base.folders)
        for name in self._deltas:
            self._check_shapes(self.tensors[name], self._deltas[name])
        for name, tokens in self._rows.items():
            self._check_rows(self.tensors[name], tokens)

    def read_into(self, name: str, buffer: memoryview, *, start: int = 0) -> None:
        """Fill `buffer` with the merged tensor's bytes from byte `start` on."""
        spec, flat = self.spec(name), buffer.cast("B")
        computed = name in self._deltas or name in self._rows
        if name in self._replaced and not computed:
            self._read_replacement(spec, flat, start)
            return
        if not computed:
            self._base.read_into(self._sources[name], flat, start=start)
            return
        if start < 0 or start + len(flat) > spec.nbytes:
            raise ValueError(
                f"{name}: bytes {start} to {start + len(flat)} of {spec.nbytes} were asked for"
            )
        stride = _BLOCK * spec.row_nbytes
        done = 0
        while done < len(flat):
            block, inner = divmod(start + done, stride)
            first = block * _BLOCK
            merged = tensor_bytes(self._merged(spec, slice(first, first + _BLOCK)))
            part = merged[inner : inner + len(flat) - done]
            flat[done : done + len(part)] = part
            done += len(part)

    def as_stored(self, name: str) -> bool:
        """Not to be relied on, also for what the adapter leaves alone."""
        return False

    def fingerprint(self) -> str:
        """A digest of the base's and the adapter's content."""
        both = f"{self._base.fingerprint()} {self._adapter.weights.fingerprint()}"
        return hashlib.sha256(both.encode()).hexdigest()

    def known_fingerprint(self) -> str | None:
        """The fingerprint, if those of base and adapter are known."""
        known = self._base.known_fingerprint() and self._adapter.weights.known_fingerprint()
        return self.fingerprint() if known else None

    def digesting(self) -> Digesting:
        """Takes nothing: merged values are not what the fingerprint is made of."""
        return _Elsewhere(self)

    def stamp(self) -> str | None:
        """Those of base and adapter together."""
        both = self._base.stamp(), self._adapter.weights.stamp()
        return None if None in both else " ".join(map(str, both))

    def close(self) -> None:
        """Close base and adapter."""
        self._base.close()
        self._adapter.weights.close()

    def _resolve(self, config: dict[str, Any]) -> None:
        base, adapter = self._base, self._adapter
        head, embedding = head_and_embedding(base.tensors)
        tied_head = "lm_head.weight" if base.tied and head is None else head if base.tied else None
        lookup = Lookup(base, tied_head)
        for parameter, tensor in adapter.replacements.items():
            self._replaced[lookup(parameter, adapter)] = tensor
        for parameter, delta in adapter.deltas.items():
            self._deltas[lookup(parameter, adapter)] = delta
        for parameter, tokens in adapter.tokens.items():
            self._rows[lookup(parameter, adapter)] = tokens
        changed = self._replaced.keys() | self._deltas.keys() | self._rows.keys()
        if tied_head and embedding and changed & {tied_head, embedding}:
            if self._stays_tied(tied_head, embedding):
                for part in (self._deltas, self._replaced, self._rows, self._sources):
                    part.pop(tied_head, None)
            else:
                self._sources.setdefault(tied_head, embedding)
                config["tie_word_embeddings"] = False
                # An embedding that was resized before it was adapted is what the head was.
                if embedding in self._deltas and embedding in self._replaced:
                    self._replaced.setdefault(tied_head, self._replaced[embedding])
        for name in self._replaced.keys() - {embedding, tied_head, head}:
            self._check_shape(name)

    def _stays_tied(self, head: str, embedding: str) -> bool:
        """Whether what the adapter does to one of them it does to both."""
        if self._adapter.keeps_ties:
            return True
        if {head, embedding} & self._deltas.keys():
            return False
        for part in (self._replaced, {name: rows.tensor for name, rows in self._rows.items()}):
            if head in part and (
                embedding not in part or not self._same(part[head], part[embedding])
            ):
                return False
        return embedding in self._rows or {head, embedding} <= self._replaced.keys()

    def _same(self, a: str, b: str) -> bool:
        weights = self._adapter.weights
        first, second = weights.tensors[a], weights.tensors[b]
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        pairs = zip(weights.chunks(a), weights.chunks(b), strict=True)
        return all(x == y for x, y in pairs)

    def _spec(self, name: str) -> TensorSpec:
        """Of a tensor of the result; a replacement brings its own number of rows."""
        old = replace(self._base.tensors[self._sources[name]], name=name)
        if name not in self._replaced:
            return old
        new = self._adapter.weights.tensors[self._replaced[name]]
        self._check_dtypes(new, old)
        size = nbytes_of(old.dtype, new.shape)
        return replace(old, shape=new.shape, nbytes=size, strides=None)

    def _resize(self, tensors: dict[str, TensorSpec], config: dict[str, Any]) -> None:
        """Let the vocabulary have as many rows as the adapter brings."""
        names = [name for name in head_and_embedding(tensors) if name is not None]
        counts = {name: tensors[name].shape[:1] for name in names}
        before = {self._base.tensors[self._sources[name]].shape[:1] for name in names}
        if {*counts.values()} == before:
            return
        if len({*counts.values()}) != 1:
            told = " and ".join(f"{name} {list(tensors[name].shape)}" for name in names)
            raise UnsupportedCheckpoint(
                f"{self._adapter.path}: with the adapter there would be {told}. It was trained on "
                "a model whose vocabulary was resized, and does not hold all that was: save it "
                "again with save_embedding_layers=True, or merge it with peft first."
            )
        for name in names:
            self._check_shape(name, first=1)
        (rows,) = next(iter(counts.values()))
        nested = config.get("text_config")
        if isinstance(nested, dict):
            config["text_config"] = {**nested, "vocab_size": rows}
        if "vocab_size" in config or not isinstance(nested, dict):
            config["vocab_size"] = rows

    def _check_shape(self, name: str, *, first: int = 0) -> None:
        """Whether a replacement has the shape of what it replaces, from dimension `first` on."""
        old = self._base.tensors[self._sources[name]].shape
        tensor = self._replaced.get(name)
        new = old if tensor is None else self._adapter.weights.tensors[tensor].shape
        if new[first:] != old[first:] or len(new) != len(old):
            raise UnsupportedCheckpoint(
                f"{self._adapter.path}: {name} has shape {list(new)}, in {self._base.name} it has "
                f"{list(old)}. The adapter belongs to another model."
            )

    def _check_dtypes(self, new: TensorSpec, old: TensorSpec) -> None:
        if new.dtype not in _FLOATS or old.dtype not in _FLOATS:
            raise UnsupportedCheckpoint(
                f"{self._adapter.path}: {old.name} is {new.dtype} on {old.dtype}; only floating "
                "point can be merged."
            )

    def _check_shapes(self, spec: TensorSpec, delta: Delta) -> None:
        if spec.dtype not in _FLOATS:
            raise UnsupportedCheckpoint(
                f"{self._adapter.path}: {spec.name} is {spec.dtype} in {self._base.name}; an "
                "adapter can be merged into floating point only. Dequantise the base first."
            )
        shape = delta.shape(self._adapter.weights)
        if shape != spec.shape:
            raise UnsupportedCheckpoint(
                f"{self._adapter.path}: the delta of {spec.name} has shape {list(shape)}, the "
                f"tensor in {self._base.name} has {list(spec.shape)}. The adapter belongs to "
                "another model."
            )

    def _check_rows(self, spec: TensorSpec, tokens: Tokens) -> None:
        new = self._adapter.weights.tensors[tokens.tensor]
        self._check_dtypes(new, spec)
        if new.shape[1:] != spec.shape[1:] or max(tokens.indices, default=0) >= spec.rows:
            raise UnsupportedCheckpoint(
                f"{self._adapter.path}: rows up to {max(tokens.indices)} of width "
                f"{list(new.shape[1:])} were trained, {spec.name} has shape {list(spec.shape)} in "
                f"{self._base.name}. The adapter belongs to another model, or to one whose "
                "vocabulary was resized."
            )

    def _read_replacement(self, spec: TensorSpec, flat: memoryview, start: int) -> None:
        tensor = self._replaced[spec.name]
        if self._adapter.weights.tensors[tensor].dtype == spec.dtype:
            self._adapter.weights.read_into(tensor, flat, start=start)
            return
        cast = self._adapter.weights.read(tensor).to(torch_dtype(spec.dtype))
        flat[:] = tensor_bytes(cast)[start : start + len(flat)]

    def _merged(self, spec: TensorSpec, rows: slice) -> torch.Tensor:
        import torch

        dtype = torch_dtype(spec.dtype)
        working = torch.float64 if dtype == torch.float64 else torch.float32
        replacement = self._replaced.get(spec.name)
        if replacement is not None:
            weight = self._adapter.weights.read(replacement, rows)
        else:
            weight = self._base.read(self._sources[spec.name], rows)
        merged = weight.to(working)
        if spec.name in self._rows:
            merged = self._rows[spec.name].put_into(merged, rows, self._adapter.weights)
        if spec.name in self._deltas:
            merged = self._deltas[spec.name].add_to(merged, rows, self._adapter.weights)
        return merged.to(dtype).contiguous()


class _Elsewhere(Digesting):
    """Stands in where bytes that are read are not those that the fingerprint is made of."""

    def __init__(self, checkpoint: LoraCheckpoint) -> None:
        self._of = checkpoint

    @property
    def needed(self) -> bool:
        """Never."""
        return False

    def update(self, name: str, data: Any, *, start: int) -> None:
        """Ignored."""

    def finish(self) -> str:
        """The fingerprint."""
        return self._of.fingerprint()
