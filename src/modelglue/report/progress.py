"""Progress in the terminal, on standard error, so that standard output stays for results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from modelglue.report.events import Event, Listener
from modelglue.report.markup import clean


@contextmanager
def run_progress() -> Iterator[Listener]:
    """A line a stage: what is tried, the best so far, time left."""
    with _bars() as bars:
        tasks: dict[str, Any] = {}

        def listen(event: Event) -> None:
            if event.stage not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, total=bars.tasks[earlier].completed, text="done")
                tasks[event.stage] = bars.add_task(clean(event.stage), total=None, text="")
            best = "" if event.best is None else f"best {100 * event.best:.1f}  "
            bars.update(
                tasks[event.stage],
                completed=event.done,
                total=event.total or None,
                text=_short(f"{best}{clean(event.text)}"),
            )

        yield listen
        for task in tasks.values():
            bars.update(task, total=bars.tasks[task].completed, text="done")


@contextmanager
def zoo_progress() -> Iterator[Callable[..., None]]:
    """A line a model that is being trained."""
    with _bars() as bars:
        tasks: dict[str, Any] = {}

        def told(
            *, model: str, step: int = 0, steps: int = 0, seconds: float | None = None
        ) -> None:
            if model not in tasks:
                tasks[model] = bars.add_task(f"train {clean(model)}", total=None, text="")
            task = tasks[model]
            if seconds is None:
                bars.update(task, completed=step, total=steps or None)
            else:
                # A base stops at an accuracy, not at a step: what it took is all that there was.
                bars.update(task, total=bars.tasks[task].completed, text=f"{seconds:.0f} s")

        yield told


@contextmanager
def bytes_progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """One bar for work of a known size."""
    with _bars() as bars:
        task = bars.add_task(clean(text), total=None, text="")
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
        refresh_per_second=4,
    )


def _short(text: str, most: int = 48) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
