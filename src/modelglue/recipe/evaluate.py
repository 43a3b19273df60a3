"""Score any model, a checkpoint or a mixture, on tasks."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from modelglue.checkpoint.source import materialise, open_checkpoint
from modelglue.errors import ConfigError
from modelglue.evaluate.harness.task import PREFIX
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.sandbox import probe
from modelglue.evaluate.scores import Scores
from modelglue.evaluate.scoring import evaluate
from modelglue.evaluate.suites.task import SUITES
from modelglue.evaluate.task import SPLITS, SplitName, Task, TaskConfig, check_tasks
from modelglue.evaluate.task_config import parse_tasks
from modelglue.evaluate.threads import threads_for
from modelglue.mixture.bundle import Bundle
from modelglue.yamlfile import read_yaml


def evaluate_model(
    reference: str,
    tasks: Sequence[Task],
    *,
    split: SplitName = "report",
    device: str = "cpu",
    dtype: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    unsafe_code: bool = False,
) -> Scores:
    """Score a folder, hub reference, `base+adapter` or mixture bundle.

    Raises:
        CheckpointError, MixtureError, TaskError: what was given cannot be used.
        SandboxUnavailable: a task runs code and nothing here can contain it.
    """
    check_tasks(tasks)
    sandbox = probe(unsafe=unsafe_code) if any(task.runs_code for task in tasks) else None
    if (Path(reference) / "mixture.json").is_file():
        bundle = Bundle.load(reference, device=device, dtype=dtype, batch_size=batch_size)
        with threads_for(bundle.parameters_active):
            return evaluate(bundle, tasks, split, sandbox=sandbox)
    with open_checkpoint(reference) as checkpoint, tempfile.TemporaryDirectory() as scratch:
        folder = materialise(checkpoint, Path(scratch) / "model")
        model = HuggingFaceModel.load(folder, device=device, dtype=dtype, batch_size=batch_size)
        with threads_for(checkpoint.parameters):
            return evaluate(model, tasks, split, sandbox=sandbox)


def tasks_of(
    given: Sequence[str],
    *,
    suites: Sequence[str] = (),
    data: Path | None = None,
    split: SplitName | None = None,
) -> tuple[list[Task], SplitName]:
    """The tasks that a user names, and the split to score.

    Args:
        given: YAML files, each a task, a list of tasks or a recipe; or harness:NAME, which is then
            scored on all of its items, as the harness does.
        suites: such as paper-report.
        data: the folder with the suites' published files; None for the hub.
        split: by default report, or the one that all the suites have.

    Raises:
        ConfigError: with everything that is wrong.
    """
    if not given and not suites:
        raise ConfigError("nothing to score the model on: name a task or a suite")
    split = split or _split_of(suites)
    problems: list[str] = []
    configs: list[TaskConfig] = []
    for text in given:
        listed, path = _listed(text, split)
        root = Path() if text.startswith(PREFIX) else Path(text).parent
        configs += parse_tasks(listed, root=root, problems=problems, path=path, splits=(split,))
    named = [{"suite": suite, "data": data} for suite in suites]
    configs += parse_tasks(named, root=Path(), problems=problems, path="suite", splits=(split,))
    if problems:
        raise ConfigError(problems)
    return [config.open() for config in configs], split


def _split_of(suites: Sequence[str]) -> SplitName:
    shared = [s for s in SPLITS if all(s in SUITES.get(suite, SPLITS) for suite in suites)]
    return shared[0] if len(shared) == 1 else "report"


def _listed(text: str, split: SplitName) -> tuple[list[Any], str]:
    """What a user named, as it would stand under `tasks:`, and what to call that in messages."""
    if text.startswith(PREFIX):
        everything = {"search": 1, "report": 0}[split]
        return [{"harness": text.removeprefix(PREFIX), "search_share": everything}], "task"
    value = read_yaml(Path(text))
    if isinstance(value, dict) and "tasks" in value and "suite" not in value:
        value = value["tasks"]
    return value if isinstance(value, list) else [value], text
