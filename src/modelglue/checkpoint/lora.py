"""A LoRA adapter on its base, read as one checkpoint without building a model.

W' = W + s·BA with s = α/r, or α/√r for rank-stabilised LoRA (Hu et al., arXiv 2106.09685;
Kalajdzievski, arXiv 2312.03732), and for DoRA (Liu et al., arXiv 2402.09353) each row of W'
rescaled to its magnitude m: m·W'/‖W'‖. Everything in fp32 (fp64 if the base is), cast once to the
base's dtype. peft rounds the product of a half-precision adapter before adding it; we don't.

Where base has head and embedding tied and the adapter changes one of them, the result is untied,
as the two behave while the adapter is in use; `merge_and_unload` changes both then. With
`ensure_weight_tying` they stay tied here too.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelglue.checkpoint.adapter import Adapter, Delta, open_adapter
from modelglue.checkpoint.fingerprint import Digesting
from modelglue.checkpoint.naming import head_and_embedding
from modelglue.checkpoint.reader import Checkpoint, tensor_bytes
from modelglue.checkpoint.spec import TensorSpec, torch_dtype
from modelglue.errors import UnsupportedCheckpoint
from modelglue.registry import nearest

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
        config = dict(base.config)
        self._resolve(config)
        tensors = {
            name: replace(base.tensors[source], name=name) for name, source in self._sources.items()
        }
        super().__init__(base.path, config, tensors, base._descriptors)
        self.name = f"{base.name}+{adapter.name}"
        self.ref = ref if ref is not None else f"{base.ref}+{adapter.path}"
        self.folders = (adapter.path, *base.folders)
        for name in self._deltas:
            self._check_shapes(self.tensors[name], self._deltas[name])

    def read_into(self, name: str, buffer: memoryview, *, start: int = 0) -> None:
        """Fill `buffer` with the merged tensor's bytes from byte `start` on."""
        spec, flat = self.spec(name), buffer.cast("B")
        if name in self._replaced and name not in self._deltas:
            self._read_replacement(spec, flat, start)
            return
        if name not in self._deltas:
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
        lookup = _Lookup(base, tied_head)
        for parameter, tensor in adapter.replacements.items():
            self._replaced[lookup(parameter, adapter)] = tensor
        for parameter, delta in adapter.deltas.items():
            self._deltas[lookup(parameter, adapter)] = delta
        changed = self._replaced.keys() | self._deltas.keys()
        if tied_head and embedding and changed & {tied_head, embedding}:
            if adapter.keeps_ties:
                self._deltas.pop(tied_head, None)
                self._replaced.pop(tied_head, None)
                if tied_head in self._sources:
                    del self._sources[tied_head]
            else:
                self._sources.setdefault(tied_head, embedding)
                config["tie_word_embeddings"] = False
        for name, tensor in self._replaced.items():
            self._check_replacement(base.tensors[self._sources[name]], name, tensor)

    def _check_replacement(self, old: TensorSpec, name: str, tensor: str) -> None:
        new = self._adapter.weights.tensors[tensor]
        if new.shape != old.shape:
            raise UnsupportedCheckpoint(
                f"{self._adapter.path}: {name} has shape {list(new.shape)}, in {self._base.name} "
                f"it has {list(old.shape)}. The adapter was trained on a model whose vocabulary "
                "was resized; merge it with peft first."
            )
        if new.dtype not in _FLOATS or old.dtype not in _FLOATS:
            raise UnsupportedCheckpoint(
                f"{self._adapter.path}: {name} is {new.dtype} on {old.dtype}; only floating "
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
        merged = self._deltas[spec.name].add_to(weight.to(working), rows, self._adapter.weights)
        return merged.to(dtype).contiguous()


class _Lookup:
    """The base's name for a parameter that an adapter names by its place in a live model."""

    def __init__(self, base: Checkpoint, tied_head: str | None) -> None:
        self._base = base
        self._known = set(base.tensors) | ({tied_head} if tied_head else set())

    def __call__(self, parameter: str, adapter: Adapter) -> str:
        # Live models may wrap what is on disk in one more prefix ("transformer."), or the
        # other way round.
        name = parameter
        while name:
            if name in self._known:
                return name
            name = name.partition(".")[2] if name.count(".") > 1 else ""
        longer = [known for known in self._known if known.endswith("." + parameter)]
        if len(longer) == 1:
            return longer[0]
        raise UnsupportedCheckpoint(
            f"{adapter.path}: the adapter changes {parameter}, which {self._base.name} does not "
            f"have{nearest(parameter, self._known)}. It belongs to another model: "
            f"adapter_config.json names {adapter.base_name or 'none'}."
        )


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
