"""A model's scores at several tasks: programs of one run while the model is at the next."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Outcome, Program, Sandbox
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.evaluate.task import SplitName, Task


def evaluate(
    model: LanguageModel,
    tasks: Sequence[Task],
    split: SplitName,
    *,
    sandbox: Sandbox | None = None,
    parts: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Score a model on a split of every task; see `Task.evaluate`, also for what it raises.

    Tasks that run code begin. The model is with one task at a time.

    Args:
        sandbox: needed if a task runs code.
        parts: of each task, the indices of the items to score; by default all of them.
        progress: called before each task with its name, how many are done, and how many there are.
    """
    found: dict[str, TaskScores | Future[TaskScores]] = {}
    order = sorted(tasks, key=lambda task: not task.runs_code)
    with ThreadPoolExecutor(max(1, len(tasks))) as beside:
        for task in order:
            if progress is not None:
                progress(task.name, len(found), len(tasks))
            part = None if parts is None else parts[task.name]
            score = partial(task.evaluate, model, split, part=part)
            if sandbox is not None and task.runs_code and task is not order[-1]:
                found[task.name] = _until_programs_run(beside, score, sandbox)
            else:
                found[task.name] = score(sandbox=sandbox)
        scores = (found[task.name] for task in tasks)
        return Scores(tuple(one.result() if isinstance(one, Future) else one for one in scores))


def _until_programs_run(
    beside: ThreadPoolExecutor, score: Callable[..., TaskScores], sandbox: Sandbox
) -> Future[TaskScores]:
    """Begin scoring in another thread, and wait until the model is free again."""
    free = Event()
    scores = beside.submit(score, sandbox=_Telling(sandbox, free.set))
    scores.add_done_callback(lambda _: free.set())
    free.wait()
    if scores.done():
        scores.result()  # what went wrong is raised before the next task begins
    return scores


@dataclass(frozen=True)
class _Telling:
    """A sandbox that says when it is handed programs: the model has written them all then."""

    inner: Sandbox
    tell: Callable[[], None]

    @property
    def name(self) -> str:
        return self.inner.name

    def run(self, programs: Sequence[Program], **how: Any) -> list[Outcome]:
        self.tell()
        return self.inner.run(programs, **how)
