"""What the stages of one run share: the recipe, its inputs, the run directory, a listener."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from modelglue.checkpoint.source import materialise
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.bundle import Bundle
from modelglue.recipe.config import RecipeConfig
from modelglue.recipe.inputs import Inputs
from modelglue.recipe.objective import Family, Template
from modelglue.recipe.rundir import RunDirectory
from modelglue.report.events import Event, Listener
from modelglue.zoo.compatibility import incompatibility


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
    _held: tuple[tuple[str, ...], Family | Bundle] | None = field(default=None, repr=False)

    def tell(
        self, stage: str, text: str, done: int = 0, total: int = 0, best: float | None = None
    ) -> None:
        """Report progress."""
        self.listen(Event(stage, text, done, total, best))

    def family(self, names: Iterable[str]) -> Family:
        """The models of these names in memory, ready to be merged; one family at a time."""
        key = tuple(names)
        if self._held is None or self._held[0] != key:
            self._held = None  # let go of the last one's weights before loading the next
            family = Family(
                {name: self.inputs.models[name] for name in key},
                references={entry.name: entry.model for entry in self.config.models},
                template=self._template(key),
                formula=self.config.merge,
                root=self.config.root,
                folder_of=self.folder_of,
                load=self._load,
            )
            self._held = (key, family)
        if not isinstance(self._held[1], Family):
            raise TypeError(f"{key} is held as a mixture")
        return self._held[1]

    def bundle(self, stage: str) -> Bundle:
        """The mixture that a stage wrote; what was held before is let go."""
        key = (stage, "bundle")
        if self._held is None or self._held[0] != key:
            self._held = None
            bundle = Bundle.load(
                self.run.folder(stage) / "bundle",
                device=self.config.device,
                dtype=self.config.dtype,
                batch_size=self.config.batch_size,
            )
            self._held = (key, bundle)
        if not isinstance(self._held[1], Bundle):
            raise TypeError(f"{key} is held as a family")
        return self._held[1]

    def folder_of(self, name: str) -> Path:
        """A model of the zoo as a plain folder; an adapter is merged into its base there, once."""
        place = self.run.folder("adapters") / str(self.config.names.index(name))
        # Written whole or not at all, so what stands there is good.
        return place if place.exists() else materialise(self.inputs.models[name], place)

    def _load(self, folder: Path) -> HuggingFaceModel:
        return HuggingFaceModel.load(
            folder,
            device=self.config.device,
            dtype=self.config.dtype,
            batch_size=self.config.batch_size,
        )

    def _template(self, names: tuple[str, ...]) -> Template:
        """The base, where it fits; else the family's first model."""
        base, first = self.inputs.base, self.inputs.models[names[0]]
        if base is not None and self.config.base and incompatibility(base, first) is None:
            place = self.run.folder("adapters") / "base"
            folder = place if place.exists() else materialise(base, place)
            return Template(base, self.config.base, folder, is_base=True)
        (reference,) = (e.model for e in self.config.models if e.name == names[0])
        return Template(first, reference, self.folder_of(names[0]))
