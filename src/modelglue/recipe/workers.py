"""What evaluates the candidates of a family, in this process or in a worker of its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from modelglue.checkpoint.source import materialise
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.task import Task
from modelglue.evaluate.threads import threads_for
from modelglue.machine import memory_of
from modelglue.recipe.config import RecipeConfig
from modelglue.recipe.division import Parts
from modelglue.recipe.inputs import Inputs, open_inputs
from modelglue.recipe.objective import Family, Template
from modelglue.recipe.search_config import SearchConfig
from modelglue.search.blocks import Blocks, cut
from modelglue.search.executors import Evaluate
from modelglue.search.executors.bench import Seat, seat
from modelglue.search.problem import Coefficients, Trial
from modelglue.zoo.compatibility import incompatibility

ACCEPT = -1
"""What a worker knows the items by that accept a merge: a block beside those of the search."""


def blocks_of(tasks: Sequence[Task], indices: Parts, count: int) -> Blocks:
    """The search items of these indices, cut into so many blocks (see `cut`)."""
    chosen = {task.name: [task.items("search")[i] for i in indices[task.name]] for task in tasks}
    return cut({name: {i.id: i.group for i in items} for name, items in chosen.items()}, count)


def parts_of(tasks: Sequence[Task], indices: Parts, blocks: Blocks) -> dict[int | None, Parts]:
    """The indices of each block's items; under None, of all."""
    parts: dict[int | None, Parts] = {None: indices}
    for block in range(len(blocks.items)):
        parts[block] = {
            task.name: tuple(
                index
                for index in indices[task.name]
                if blocks.places[task.name][task.items("search")[index].id] == block
            )
            for task in tasks
        }
    return parts


def scorer(
    family: Callable[[], Family],
    tasks: Sequence[Task],
    parts: Mapping[int | None, Parts],
    sandbox: Sandbox | None,
) -> Evaluate:
    """What does the jobs of an executor: scores a candidate on a part of the search items.

    Args:
        family: gives the family whenever it is needed.
    """

    def evaluate(coefficients: Coefficients, block: int | None) -> Trial:
        return family().evaluate(coefficients, tasks, parts[block], sandbox)

    return evaluate


@dataclass(frozen=True)
class Station:
    """A family and its tasks, as a process of its own builds them; a `Factory`.

    Attributes:
        config: the recipe.
        adapters: where adapters stand that were merged into their bases; whoever sends workers out
            puts them there, lest each does.
        members: the family's models.
        tasks: names.
        parts: see `parts_of`.
    """

    config: RecipeConfig
    adapters: Path
    members: tuple[str, ...]
    tasks: tuple[str, ...]
    parts: Mapping[int | None, Parts]

    def __call__(self) -> Evaluate:
        """Open what is needed, for as long as the process lives."""
        here = seat()
        if here.threads is not None:
            torch.set_num_threads(here.threads)
        config = replace(
            self.config,
            models=tuple(entry for entry in self.config.models if entry.name in self.members),
            tasks=tuple(task for task in self.config.tasks if task.name in self.tasks),
            device=device_of(self.config.device, here, torch.cuda.device_count),
        )
        stack = ExitStack()
        inputs = stack.enter_context(open_inputs(config, share=here.threads))
        most = max(model.parameters for model in inputs.models.values())
        stack.enter_context(threads_for(most))
        sharers = sharers_of(self.config.device, here, config.search, torch.cuda.device_count)
        families = Families(config, inputs, self.adapters, self.config.names, sharers)
        family = families.of(self.members)
        return scorer(lambda: family, inputs.tasks, self.parts, inputs.sandbox)


def device_of(device: str, here: Seat, count: Callable[[], int]) -> str:
    """The device of a worker: those on one machine share its GPUs evenly, if it is left open which.

    >>> device_of("cuda", Seat(5), lambda: 4), device_of("cuda:2", Seat(5), lambda: 4)
    ('cuda:1', 'cuda:2')
    """
    if device != "cuda" or not here.sees_all or not (gpus := count()):
        return device
    return f"cuda:{here.index % gpus}"


def sharers_of(device: str, here: Seat, search: SearchConfig, count: Callable[[], int]) -> int:
    """How many workers share the memory of a worker's device, itself included.

    Args:
        device: as the recipe has it.
        count: gives the number of the machine's GPUs.

    >>> search = SearchConfig(workers=6)
    >>> sharers_of("cuda", Seat(5), search, lambda: 4), sharers_of("cpu", Seat(5), search, int)
    (2, 6)
    """
    if not device.startswith("cuda"):
        return search.workers
    if not here.sees_all:  # Ray puts as many on a GPU as fit there
        share = search.gpus_per_worker or 1.0
        return min(search.workers, max(1, int(1 / share)))
    gpus = count() if device == "cuda" else 1
    return math.ceil(search.workers / max(1, gpus))


@dataclass(frozen=True)
class Families:
    """Makes families of a recipe's models.

    Attributes:
        adapters: the folder for adapters that were merged into their bases.
        names: of all models of the recipe, by whose order those folders are called.
        sharers: how many processes make families on the device side by side.
    """

    config: RecipeConfig
    inputs: Inputs
    adapters: Path
    names: tuple[str, ...]
    sharers: int = 1

    def of(self, members: Sequence[str]) -> Family:
        """The models of these names; their weights are read when they are first needed."""
        return Family(
            {name: self.inputs.models[name] for name in members},
            references={entry.name: entry.model for entry in self.config.models},
            template=self.template(members),
            formula=self.config.merge,
            root=self.config.root,
            folder_of=self.folder_of,
            load=self.load,
            memory=self._memory,
        )

    @property
    def _memory(self) -> int | None:
        """Bytes of weights to hold beside a module; None where it says so, spread over GPUs."""
        if self.config.search.gpus_per_model > 1:
            return None
        return memory_of(self.config.device) // 2 // self.sharers

    def folder_of(self, name: str) -> Path:
        """A model of the zoo as a plain folder; an adapter is merged into its base there, once."""
        place = self.adapters / str(self.names.index(name))
        # Written whole or not at all, so what stands there is good.
        return place if place.exists() else materialise(self.inputs.models[name], place)

    def template(self, members: Sequence[str]) -> Template:
        """The base, where it fits; else the family's first model."""
        base, first = self.inputs.base, self.inputs.models[members[0]]
        if base is not None and self.config.base and incompatibility(base, first) is None:
            place = self.adapters / "base"
            folder = place if place.exists() else materialise(base, place)
            return Template(base, self.config.base, folder, is_base=True)
        (reference,) = (e.model for e in self.config.models if e.name == members[0])
        return Template(first, reference, self.folder_of(members[0]))

    def load(self, folder: Path) -> HuggingFaceModel:
        """The model of a folder, as the recipe runs models."""
        return HuggingFaceModel.load(
            folder,
            device=self.config.device,
            gpus=self.config.search.gpus_per_model,
            dtype=self.config.dtype,
            batch_size=self.config.batch_size,
            sharers=self.sharers,
        )
