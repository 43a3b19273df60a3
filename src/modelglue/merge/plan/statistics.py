"""Statistics in a plan: which tensor of which checkpoint a source goes with, and if it fits."""

from collections.abc import Mapping, Sequence
from typing import Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.spec import TensorSpec
from modelglue.errors import NotMergeable, ShapeMismatch
from modelglue.merge.method import Method
from modelglue.merge.plan.problems import Problems
from modelglue.merge.plan.tensor_plan import Source


class Statistics:
    """Finds the statistics of sources.

    Args:
        method: of the merge.
        checkpoints: of statistics, by what the configuration calls them, in the order of the plan.
        problems: all that is wrong is added here.

    Attributes:
        notes: what is allowed but may not be meant.
    """

    def __init__(
        self, method: Method, checkpoints: Mapping[str, Checkpoint], problems: Problems
    ) -> None:
        self.notes: dict[str, None] = {}
        self._method = method
        self._checkpoints = list(checkpoints.values())
        self._index = {name: i for i, name in enumerate(checkpoints)}
        keys = (p.name for p in method.parameters if p.kind == "checkpoint")
        self._key = next(keys, None)
        self._problems = problems
        self._fit: dict[tuple[int, int], bool] = {}

    def of(
        self,
        name: str,
        sources: Sequence[tuple[Checkpoint, TensorSpec]],
        parameters: Mapping[str, Any],
        *,
        united: bool,
    ) -> tuple[Source | None, ...]:
        """Those of one output tensor, one a source; none for a method that asks for none.

        Args:
            name: of the output tensor.
            sources: (the model, its tensor) of each.
            parameters: that the tensor is merged with.
            united: whether rows of different vocabularies come together.
        """
        if self._key is None:
            return ()
        given = [self._index.get(path) for path in parameters[self._key]]
        found: list[Source | None] = []
        for (model, spec), index in zip(sources, given, strict=True):
            if index is None or not self._fits(index, model):
                found.append(None)
                continue
            has = self._checkpoints[index].tensors.get(spec.name)
            found.append(None if has is None else Source(index, spec.name))
            if has is not None:
                self._check(self._checkpoints[index], has, model, spec, united=united)
        unfit = any(
            index is not None and not self._fits(index, model)
            for (model, _), index in zip(sources, given, strict=True)
        )
        if None not in found or not any(found) or unfit:
            return tuple(found)
        lacking, spec = sources[found.index(None)]
        if any(spec.name != name for _, spec in sources) and self._method.statistics == "gram":
            # No text reaches a tied head by its own name.
            self.notes[
                f"{name}: {lacking.name} has it tied to its embedding, without statistics of it; "
                "it is the weighted mean"
            ] = None
            return (None,) * len(found)
        self._problems.tell(
            NotMergeable,
            spec.name,
            f"the statistics of {lacking.name} lack it, others have it. Compute them for the same "
            "tensors.",
        )
        return tuple(found)

    def _check(
        self,
        statistics: Checkpoint,
        has: TensorSpec,
        model: Checkpoint,
        spec: TensorSpec,
        *,
        united: bool,
    ) -> None:
        if united:
            self._problems.tell(
                NotMergeable,
                spec.name,
                f"vocabularies differ, and {self._method.name} has statistics of each model's own "
                "rows alone. Unite the models first.",
            )
        gram = self._method.statistics == "gram" and spec.shape
        shape = (spec.shape[-1], spec.shape[-1]) if gram else spec.shape
        if has.shape != shape:
            self._problems.tell(
                ShapeMismatch,
                spec.name,
                f"the statistics of {model.name} have {list(has.shape)}, it needs {list(shape)}. "
                "Compute them for this model.",
            )

    def _fits(self, index: int, model: Checkpoint) -> bool:
        """Whether a checkpoint holds such statistics, and of that model; told once if not."""
        key = (index, id(model))
        if key not in self._fit:
            told = self._unfit(self._checkpoints[index], model)
            self._fit[key] = told is None
            if told is not None:
                self._problems.add(NotMergeable(told))
        return self._fit[key]

    def _unfit(self, statistics: Checkpoint, model: Checkpoint) -> str | None:
        config = statistics.config
        wanted = {"same": "fisher", "gram": "gram"}.get(self._method.statistics)
        kind = config.get("kind")
        if kind not in (None, wanted):
            return (
                f"{statistics.name} holds statistics of kind {kind}, {self._method.name} needs "
                f"{wanted}."
            )
        transposed = [name for name in config.get("transposed") or () if name in model.tensors]
        if transposed and wanted == "gram":
            return (
                f"{model.name} stores {len(transposed)} matrices as [in, out], such as "
                f"{transposed[0]}, which {self._method.name} does not merge. Leave this model out."
            )
        of, known = config.get("model"), model.known_fingerprint()
        if of is not None and known is not None and of != known:
            return f"{statistics.name} holds the statistics of another model than {model.name}."
        if of is not None and known is None:
            self.notes[
                f"whether {statistics.name} holds the statistics of {model.name} is not checked: "
                "that needs the model to be read"
            ] = None
        return None
