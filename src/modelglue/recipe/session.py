"""What the stages of one run share: the recipe, its inputs, the run directory, a listener."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.scores import Scores
from modelglue.evaluate.scoring import evaluate
from modelglue.evaluate.task import Task
from modelglue.journal import read_json
from modelglue.mixture.bundle import Bundle
from modelglue.recipe.config import RecipeConfig
from modelglue.recipe.division import Parts
from modelglue.recipe.foresight import search_notes
from modelglue.recipe.inputs import Inputs
from modelglue.recipe.objective import Family
from modelglue.recipe.rundir import RunDirectory
from modelglue.recipe.workers import Families, Station, scorer
from modelglue.report.events import Event, Listener
from modelglue.search.executors import Executor, executor
from modelglue.search.executors.serial import Serial
from modelglue.search.study import Mirror


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
    _held: tuple[tuple[str, ...], Family | Bundle | HuggingFaceModel] | None = field(
        default=None, repr=False
    )

    def __post_init__(self) -> None:
        self.notes += tuple(search_notes(self.config.search, self.inputs.models))

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
            self._held = (key, self._families.of(key))
        if not isinstance(self._held[1], Family):
            raise TypeError(f"{key} is held as a mixture")
        return self._held[1]

    def mixture(self, stage: str) -> Bundle | HuggingFaceModel:
        """The mixture that a stage wrote; what was held before is let go."""
        key = (stage, "mixture")
        if self._held is None or self._held[0] != key:
            self._held = None
            folder = self.mixture_folder(stage)
            load = Bundle.load if folder.name == "bundle" else HuggingFaceModel.load
            mixture = load(
                folder,
                device=self.config.device,
                gpus=self.config.search.gpus_per_model,
                dtype=self.config.dtype,
                batch_size=self.config.batch_size,
            )
            self._held = (key, mixture)
        if isinstance(self._held[1], Family):
            raise TypeError(f"{key} is held as a family")
        return self._held[1]

    def mixture_folder(self, stage: str) -> Path:
        """Where the mixture lies that a stage wrote."""
        folder = self.run.folder(stage)
        return folder / str(read_json(folder / "manifest.json")["folder"])

    def folder_of(self, name: str) -> Path:
        """A model of the zoo as a plain folder; an adapter is merged into its base there, once."""
        return self._families.folder_of(name)

    def executor(
        self, members: tuple[str, ...], tasks: Sequence[Task], parts: Mapping[int | None, Parts]
    ) -> Executor:
        """Who evaluates the candidates of a family, as the recipe says; whoever asks closes it.

        Args:
            parts: what each block's items are; under None, all that a search may see.
        """
        search = self.config.search
        if search.executor == "serial":
            # Asked for each time: something else may have been held in the meantime.
            return Serial(scorer(lambda: self.family(members), tasks, parts, self.inputs.sandbox))
        for name in members:
            self.folder_of(name)
        self._families.template(members)  # what has to be written is written once, here
        # What mirrors the search stays here: a worker need not reach it.
        config = replace(self.config, search=replace(search, storage=None))
        gpus = search.gpus_per_worker or float(self.config.device.startswith("cuda"))
        return executor(
            search.executor,
            Station(config, self._adapters, members, tuple(t.name for t in tasks), parts),
            workers=search.workers,
            address=search.address,
            gpus_per_worker=gpus,
        )

    def mirror(self, name: str) -> Mirror:
        """An Optuna study of a search: in the run's own file, or in the recipe's database."""
        storage = self.config.search.storage
        if storage is None:
            return Mirror(self.run.path / "optuna.journal", name, note=self.note)
        # Runs may share a database, and strategies in them their names.
        return Mirror(storage, f"{name} of {self.run.path.name} {self.run.id}", note=self.note)

    def note(self, text: str) -> None:
        """One more remark for the report."""
        self.notes += (text,)

    def base_in(self, members: Sequence[str]) -> str | None:
        """What the base of these models is called: as a member of the zoo, or as the user wrote it.

        None where the recipe names no base, or one that does not fit them.
        """
        template = self._families.template(members)
        if not template.is_base:
            return None
        path = template.checkpoint.path
        same = (name for name, model in self.inputs.models.items() if model.path == path)
        return next(same, template.reference)

    def base_scores(self, members: Sequence[str], tasks: Sequence[Task], part: Parts) -> Scores:
        """The base's own scores on a part of the search items, where it is not in the zoo."""
        model = self._families.load(self._families.template(members).folder)
        return evaluate(model, tasks, "search", sandbox=self.inputs.sandbox, parts=part)

    @property
    def _adapters(self) -> Path:
        return self.run.folder("adapters")

    @property
    def _families(self) -> Families:
        return Families(self.config, self.inputs, self._adapters, self.config.names)
