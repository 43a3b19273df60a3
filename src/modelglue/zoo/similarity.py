"""How alike models are: all pairs in one pass over each checkpoint.

The similarity of two models is Model-GLUE's (arXiv 2410.05357): the mean, over all attention and
MLP matrices, of the mean column-wise cosine,

    s(a, b) = mean over W of mean over j of ⟨W_a[:, j], W_b[:, j]⟩ / (‖W_a[:, j]‖ ‖W_b[:, j]‖),

on the weights themselves or on task vectors; norms, embeddings and head are left out. What differs
from the published code is how it is computed. Loading both models of every pair reads each of N
checkpoints N − 1 times; here every matrix is read once from each, and the dot products of all
pairs are taken while it passes.

A column of zeros has no direction. Two of them are the same column and count as 1 (so a model is
like itself whatever padding or untouched matrices it has); one against another column counts as 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelglue.checkpoint.naming import place
from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import InputError, NonFiniteTensor, UnsupportedCheckpoint
from modelglue.zoo.columns import ColumnProducts
from modelglue.zoo.names import unique_names

Matrix = NDArray[np.float64]
Measure = Literal["column", "tensor"]
Of = Literal["weights", "task_vectors"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Similarity:
    """The similarity of every pair of models, in the order in which they were given.

    Attributes:
        names: [n], unique.
        matrix: [n, n], symmetric, in [-1, 1], 1 on the diagonal; nan where two models differ in
            the names or shapes of their matrices.
        by_role: the same over the matrices of one role, "attention" or "mlp".
        by_layer: the same over the matrices of one layer.
        measure: "column" (mean over columns) or "tensor" (one cosine a matrix).
        of: "weights" or "task_vectors".
        fingerprints: of every model, if they were asked for.
    """

    names: tuple[str, ...]
    matrix: Matrix
    by_role: Mapping[str, Matrix]
    by_layer: Mapping[int, Matrix]
    measure: Measure = "column"
    of: Of = "weights"
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def between(self, a: str, b: str) -> float:
        """The similarity of two models by name; nan if they cannot be compared."""
        return float(self.matrix[self.names.index(a), self.names.index(b)])

    def to_json(self) -> dict[str, Any]:
        """Plain data; nan becomes null."""
        return {
            "names": list(self.names),
            "matrix": _to_lists(self.matrix),
            "by_role": {role: _to_lists(matrix) for role, matrix in self.by_role.items()},
            "by_layer": {str(layer): _to_lists(m) for layer, m in self.by_layer.items()},
            "measure": self.measure,
            "of": self.of,
            "fingerprints": dict(self.fingerprints),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Similarity":
        """What `to_json` made."""
        return cls(
            names=tuple(data["names"]),
            matrix=_from_lists(data["matrix"]),
            by_role={role: _from_lists(m) for role, m in data["by_role"].items()},
            by_layer={int(layer): _from_lists(m) for layer, m in data["by_layer"].items()},
            measure=data["measure"],
            of=data["of"],
            fingerprints=data["fingerprints"],
        )


def similarities(
    checkpoints: Sequence[Checkpoint],
    *,
    base: Checkpoint | None = None,
    measure: Measure = "column",
    of: Of = "weights",
    names: Sequence[str] | None = None,
    fingerprint: bool = False,
    progress: Progress | None = None,
) -> Similarity:
    """The similarity of all pairs, each matrix read once from each checkpoint.

    Models are compared if all their attention and MLP matrices agree in name and shape; one that
    is like no other in this is not read. Memory: about 8 MiB for rows, and two arrays of
    [columns, n, n] for the widest matrix. A tensor of three dimensions, such as fused experts,
    counts as that many matrices, of which one from each model is in memory at once. The order of
    the models changes no bit of the result.

    Args:
        checkpoints: [n].
        base: what task vectors are taken from (not needed for weights). It is read once, also if
            it is among the checkpoints.
        measure: "column" as in the paper, or "tensor" for one cosine a matrix.
        of: "weights", or "task_vectors" (weights minus those of `base`).
        names: [n], unique; by default the folders' names.
        fingerprint: digest the models in the same pass; the tensors that do not count here are
            then read too, each byte still once.
        progress: called with the bytes read so far and the bytes to read.

    Raises:
        InputError: task vectors without a base, names that are not unique, an unknown measure.
        NonFiniteTensor: a matrix holds NaN or infinity.
        UnsupportedCheckpoint: a matrix holds quantised weights.
    """
    if measure not in get_args(Measure) or of not in get_args(Of):
        known = f"measure {' or '.join(get_args(Measure))}; of {' or '.join(get_args(Of))}"
        raise InputError(f"there is no similarity by {measure!r} of {of!r}. Known: {known}.")
    labels = unique_names(checkpoints, names)
    # By name, so that sums are taken in an order that does not depend on the caller's.
    order = sorted(range(len(labels)), key=labels.__getitem__)
    models = [_Model(labels[i], checkpoints[i], fingerprint) for i in order]
    origin = _origin(models, base, fingerprint) if of == "task_vectors" else None
    groups = _comparable(models, origin)
    tally = _Tally(len(models))
    stream = ColumnProducts()
    total = sum(model.nbytes for group in groups for model in group.sources)
    done = 0
    for group in groups:
        subtract = None if origin is None else group.sources.index(origin)
        files = [model.checkpoint for model in group.sources]
        digests = [model.digest for model in group.sources if model.digest is not None]
        for name in sorted(group.sources[0].matrices):
            for products in stream.products(files, name, origin=subtract, digests=digests):
                _refuse_non_finite(products, group.sources, subtract, name)
                cosines = _cosines(products, measure)
                # The base was read to be subtracted; it is no model of its own here.
                tally.add(name, group.members, cosines[: len(group.members), : len(group.members)])
            done += sum(file.tensors[name].nbytes for file in files)
            if progress is not None:
                progress(done, total)
    matrix, by_role, by_layer = tally.means(np.argsort(order))
    # A base that is none of the models is finished too: that keeps its fingerprint for later.
    read = models if origin is None or origin in models else [*models, origin]
    found = {model: model.digest.finish() for model in read if model.digest is not None}
    fingerprints = {model.name: found[model] for model in models if model in found}
    return Similarity(labels, matrix, by_role, by_layer, measure, of, fingerprints)


class _Model:
    """A checkpoint, what it is called, and the matrices of it that count."""

    def __init__(self, name: str, checkpoint: Checkpoint, fingerprint: bool) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.digest = checkpoint.digesting() if fingerprint else None
        self.matrices = {
            tensor: spec
            for tensor, spec in checkpoint.tensors.items()
            if len(spec.shape) >= 2 and place(tensor).role in _ROLES
        }
        self.shapes = frozenset((tensor, spec.shape) for tensor, spec in self.matrices.items())
        self.nbytes = sum(spec.nbytes for spec in self.matrices.values())


@dataclass(frozen=True)
class _Group:
    """Models with the same matrices: where they stand, and whatever has to be read for them."""

    members: Sequence[int]
    sources: Sequence[_Model]


_ROLES = ("attention", "mlp")
_FLOATS = ("BF16", "F16", "F32", "F64")


def _origin(models: Sequence[_Model], base: Checkpoint | None, fingerprint: bool) -> _Model:
    if base is None:
        raise InputError("task vectors need a base: name the model that the others started from.")
    stamp = base.stamp()  # the base may have been opened a second time
    for model in models:
        if model.checkpoint is base or (stamp is not None and model.checkpoint.stamp() == stamp):
            return model
    return _Model(base.name, base, fingerprint)


def _comparable(models: Sequence[_Model], origin: _Model | None) -> list[_Group]:
    """Groups of two or more models that have the same matrices (and the base has them too)."""
    by_shapes: dict[frozenset[tuple[str, tuple[int, ...]]], list[int]] = {}
    for i, model in enumerate(models):
        if origin is None or model.shapes == origin.shapes:
            by_shapes.setdefault(model.shapes, []).append(i)
    groups = []
    for members in by_shapes.values():
        if len(members) > 1:
            sources = [models[i] for i in members]
            if origin is not None and origin not in sources:
                sources.append(origin)
            groups.append(_Group(members, sources))
    for model in (model for group in groups for model in group.sources):
        for tensor, spec in model.matrices.items():
            if spec.dtype not in _FLOATS:
                raise UnsupportedCheckpoint(
                    f"{tensor}: {model.name} holds {spec.dtype}. Quantised weights can be neither "
                    "compared nor merged; take the model in 16 or 32 bits."
                )
    return groups


def _cosines(products: Tensor, measure: Measure) -> Matrix:
    """[n, n] from the dot products of columns [columns, n, n]."""
    if measure == "tensor":
        products = products.sum(0, keepdim=True)
    total = torch.zeros(products.shape[1:], dtype=torch.float64)
    for block in torch.split(products, 256):  # little memory for the temporaries
        norms = block.diagonal(dim1=1, dim2=2).sqrt()
        scale = norms[:, :, None] * norms[:, None, :]
        zero = norms == 0
        both_zero = (zero[:, :, None] & zero[:, None, :]).double()
        total += torch.where(scale > 0, block / scale, both_zero).sum(0)
    cosines: Matrix = (total / max(len(products), 1)).clamp(-1, 1).numpy()
    return (cosines + cosines.T) / 2


def _refuse_non_finite(
    products: Tensor, sources: Sequence[_Model], origin: int | None, name: str
) -> None:
    finite = products.diagonal(dim1=1, dim2=2).isfinite().all(0)  # [n]
    if finite.all():
        return
    # A broken base breaks every task vector.
    if origin is not None and not finite[origin]:
        broken = sources[origin]
    else:
        broken = sources[int(finite.int().argmin())]
    raise NonFiniteTensor(
        f"{name}: {broken.name} holds NaN or infinity. Leave that model out "
        f"({broken.checkpoint.path})."
    )


class _Tally:
    """Sums of cosines over matrices: of all, by role and by layer."""

    def __init__(self, models: int) -> None:
        self._models = models
        self._sums: dict[str | int, Matrix] = {}
        self._counts: dict[str | int, Matrix] = {}

    def add(self, name: str, members: Sequence[int], cosines: Matrix) -> None:
        where = place(name)
        pairs = np.ix_(members, members)
        for key in ("all", where.role, where.layer):
            if key is not None:
                self._at(self._sums, key)[pairs] += cosines
                self._at(self._counts, key)[pairs] += 1

    def means(self, back: NDArray[np.intp]) -> tuple[Matrix, dict[str, Matrix], dict[int, Matrix]]:
        """Of all, by role and by layer, in the order of the caller's models."""
        layers = sorted(key for key in self._sums if isinstance(key, int))
        return (
            self._mean("all", back),
            {role: self._mean(role, back) for role in _ROLES if role in self._sums},
            {layer: self._mean(layer, back) for layer in layers},
        )

    def _at(self, table: dict[str | int, Matrix], key: str | int) -> Matrix:
        return table.setdefault(key, np.zeros((self._models, self._models)))

    def _mean(self, key: str | int, back: NDArray[np.intp]) -> Matrix:
        sums, counts = self._at(self._sums, key), self._at(self._counts, key)
        mean = np.full_like(sums, np.nan)
        np.divide(sums, counts, out=mean, where=counts > 0)
        np.fill_diagonal(mean, 1.0)
        return mean[np.ix_(back, back)]


def _to_lists(matrix: Matrix) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def _from_lists(rows: Sequence[Sequence[float | None]]) -> Matrix:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
