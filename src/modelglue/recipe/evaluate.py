"""Score any model, a checkpoint or a mixture, on tasks."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from modelglue.checkpoint.source import materialise, open_checkpoint
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.sandbox import probe
from modelglue.evaluate.scores import Scores
from modelglue.evaluate.task import SplitName, Task, evaluate
from modelglue.evaluate.threads import threads_for
from modelglue.mixture.bundle import Bundle


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
    for task in tasks:
        task.check()
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
