"""What the stages of one run share: the recipe, its inputs, the run directory, a listener."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import materialise
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.bundle import Bundle
from modelglue.recipe.config import RecipeConfig
from modelglue.recipe.inputs import Inputs
from modelglue.recipe.objective import Family
from modelglue.recipe.rundir import RunDirectory
from modelglue.report.events import Event, Listener

Model = HuggingFaceModel | Bundle


@dataclass
class Session:
    """One run under way.

    Attributes:
        notes: remarks for the report (a task that had to be left out, say).
    """

    config: RecipeConfig
    inputs: Inputs
    run: RunDirectory
    listen: Listener
    notes: tuple[str, ...] = ()
    _family: tuple[tuple[str, ...], Family] | None = field(default=None, repr=False)

    def tell(
        self, stage: str, text: str, done: int = 0, total: int = 0, best: float | None = None
    ) -> None:
        """Report progress."""
        self.listen(Event(stage, text, done, total, best))

    def family(self, names: Iterable[str]) -> Family:
        """The models of these names in memory, ready to be merged; one family at a time."""
        key = tuple(names)
        if self._family is None or self._family[0] != key:
            self._family = None  # let go of the last one's weights before loading the next
            base = self._template(key)
            self._family = (
                key,
                Family(
                    {name: self.inputs.models[name] for name in key},
                    references={entry.name: entry.model for entry in self.config.models},
                    base=base,
                    base_reference=self.config.base if base else None,
                    folder_of=self.folder_of,
                    device=self.config.device,
                    dtype=self.config.dtype,
                    batch_size=self.config.batch_size,
                ),
            )
        return self._family[1]

    def folder_of(self, name: str) -> Path:
        """A model of the zoo as a plain folder; an adapter is merged into its base there, once."""
        place = self.run.folder("adapters") / str(self.config.names.index(name))
        # Written whole or not at all, so what stands there is good.
        return place if place.exists() else materialise(self.inputs.models[name], place)

    def bundle(self, stage: str) -> Bundle:
        """The mixture that a stage wrote."""
        return Bundle.load(
            self.run.folder(stage) / "bundle",
            device=self.config.device,
            dtype=self.config.dtype,
            batch_size=self.config.batch_size,
        )

    def _template(self, names: Iterable[str]) -> Checkpoint | None:
        base = self.inputs.base
        if base is None:
            return None
        same = [self.inputs.models[name].path == base.path for name in names]
        return base if any(same) else None
