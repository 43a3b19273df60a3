"""What a run starts from, opened and checked before any work: all problems at once."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from modelglue.checkpoint.companions import companions
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.source import open_checkpoint
from modelglue.errors import CheckpointError, ConfigError, RunConflict, TaskError
from modelglue.evaluate.devices import spreading_problem
from modelglue.evaluate.overlaps import overlaps_across
from modelglue.evaluate.sandbox import Sandbox, probe
from modelglue.evaluate.sandbox.remembering import Remembering
from modelglue.evaluate.task import Task
from modelglue.recipe.config import RecipeConfig
from modelglue.recipe.division import Division, divide
from modelglue.recipe.foresight import mixture_problems, search_problems
from modelglue.search.study import storage_problem


@dataclass(frozen=True)
class Inputs:
    """The zoo and the tasks, ready for use.

    Attributes:
        models: checkpoint by name, in the recipe's order.
        base: the model that the others come from, or None.
        division: which of the search items propose merges, and which accept them.
        sandbox: for the tasks that run code; None if none does.
    """

    models: dict[str, Checkpoint]
    base: Checkpoint | None
    tasks: tuple[Task, ...]
    division: Division
    sandbox: Sandbox | None

    def companion_digests(self) -> dict[str, str]:
        """A digest of each model's tokenizer, templates and generation settings."""
        digests = {}
        for name, model in self.models.items():
            digest = hashlib.sha256()
            for place, content in sorted(companions(model.path).items()):
                digest.update(f"{place}\0{len(content)}\0".encode() + content)
            digests[name] = digest.hexdigest()
        return digests

    def task_digests(self) -> dict[str, str]:
        """A digest of each task's items, to notice when one changes under a run."""
        return {task.name: task.digest() for task in self.tasks}


@contextmanager
def open_inputs(config: RecipeConfig, *, share: int | None = None) -> Iterator[Inputs]:
    """Open every model's headers, read and check every task, find a sandbox.

    Args:
        share: of the machine's cores, for a worker beside others: so many programs run side by
            side, and what whoever sent it has compared (the tasks with each other) is left. None
            for all cores, and all checks.

    Raises:
        ConfigError: with everything that cannot be used.
        SandboxUnavailable: a task runs code, nothing here can contain it, and `unsafe_code` is not
            set.
    """
    problems: list[str] = []
    with ExitStack() as stack:

        def opened(reference: str, key: str) -> Checkpoint | None:
            try:
                return stack.enter_context(open_checkpoint(reference, root=config.root))
            except CheckpointError as error:
                problems.append(f"{key}: {error}")
                return None

        found = {
            entry.name: opened(entry.model, f"models[{index}]")
            for index, entry in enumerate(config.models)
        }
        base = opened(config.base, "base") if config.base else None
        problems += _device_problems(config)
        if config.search.storage is not None:
            problem = storage_problem(config.search.storage)
            problems += [] if problem is None else [problem]
        models = {name: model for name, model in found.items() if model is not None}
        problems += search_problems(config.search, models)
        problems += mixture_problems(config.mixture, models)
        tasks = tuple(task.open() for task in config.tasks)
        for task in tasks:
            try:
                task.check()
            except TaskError as error:
                problems.append(str(error).replace("\n", "\n  "))
        if share is None and not problems:
            problems += overlaps_across(tasks)
        if problems:
            raise ConfigError(problems)
        division = divide(tasks, config.search.validation)
        runs_code = any(task.runs_code for task in tasks)
        probed = probe(unsafe=config.unsafe_code, cores=share) if runs_code else None
        sandbox = None if probed is None else Remembering(probed)
        yield Inputs(models, base, tasks, division, sandbox)


def _device_problems(config: RecipeConfig) -> list[str]:
    import torch

    problems = []
    gpus = config.search.gpus_per_model
    if gpus > 1 and (problem := spreading_problem(gpus)) is not None:
        problems.append(f"search.gpus_per_worker: {problem}")
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        everywhere = (
            ". Ray's workers need it, and so does the machine that starts the run, which compares "
            "the models and scores the report's items itself"
        )
        more = everywhere if config.search.executor == "ray" else ""
        problems.append(f"device: {config.device!r} cannot be used: {reason}{more}")
    return problems


def refuse_changed(standing: dict[str, str], now: dict[str, str], what: str) -> None:
    """Refuse to go on with a run whose inputs are no longer what they were.

    Raises:
        RunConflict: naming what changed.
    """
    changed = [name for name in standing if standing[name] != now.get(name)]
    if changed:
        raise RunConflict(
            f"{what} changed since this run began: {', '.join(changed)}. What stands in the run "
            "was made from the old ones: choose another output, or delete the folder"
        )
