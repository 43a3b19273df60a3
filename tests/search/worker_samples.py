"""Factories for workers that meet with accidents; light to import, as every worker does."""

import os
import random
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from modelglue.errors import ConfigError, TaskError
from modelglue.evaluate.scores import Scores, TaskScores
from modelglue.journal import Journal
from modelglue.search.blocks import cut
from modelglue.search.executors import Evaluate, Executor
from modelglue.search.executors.bench import seat
from modelglue.search.problem import Problem, Trial, search
from modelglue.search.trials import JournalledObjective

ITEMS = {"t": [f"t{i}" for i in range(12)], "u": [f"u{i}" for i in range(9)]}
BLOCKS = cut({task: {item: item for item in ids} for task, ids in ITEMS.items()}, 3)


def landscape(coefficients: Mapping[str, float]) -> Scores:
    """Items that are answered while a number is near enough to one of their own."""
    a, b = coefficients.get("a", 0.0), coefficients.get("b", 0.0)
    return Scores(
        tuple(
            TaskScores(
                task,
                tuple(ids),
                tuple(float(abs(a - 0.3 * b - i / len(ids)) < 0.4) for i in range(len(ids))),
            )
            for task, ids in ITEMS.items()
        )
    )


def score(coefficients: Mapping[str, float], block: int | None) -> Trial:
    """A candidate on a block."""
    scores = landscape(coefficients)
    return Trial(scores if block is None else BLOCKS.part(scores, block))


class Unpicklable(Exception):
    """An error that does not survive the way to another process."""

    def __init__(self, message: str, _more: object) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Changed(Exception):
    """An error that arrives as another one."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is wrong")


@dataclass(frozen=True)
class Steady:
    """Nothing happens."""

    def __call__(self) -> Evaluate:
        return score


@dataclass(frozen=True)
class KilledOnce:
    """The first worker that comes to a candidate dies in the middle of it; there are several."""

    folder: Path
    fatal: tuple[float, ...]

    def __call__(self) -> Evaluate:
        def evaluate(coefficients: Mapping[str, float], block: int | None) -> Trial:
            value = coefficients.get("a", 0.0)
            if value in self.fatal:
                with suppress(FileExistsError):
                    (self.folder / f"killed at {value}").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return score(coefficients, block)

        return evaluate


@dataclass(frozen=True)
class AlwaysKilled:
    """A candidate that no worker survives, as one that takes all memory."""

    folder: Path
    fatal: float

    def __call__(self) -> Evaluate:
        def evaluate(coefficients: Mapping[str, float], block: int | None) -> Trial:
            if coefficients.get("a") == self.fatal:
                with (self.folder / "deaths").open("a") as deaths:
                    deaths.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return score(coefficients, block)

        return evaluate


@dataclass(frozen=True)
class Raises:
    """Meets an error at a candidate; the others take long."""

    error: str
    fatal: float

    def __call__(self) -> Evaluate:
        def evaluate(coefficients: Mapping[str, float], block: int | None) -> Trial:
            if coefficients.get("a") == self.fatal:
                raise {
                    "ours": TaskError("task t: item 3 is wrong"),
                    "many": ConfigError(["a: one", "b: two"], where="glue.yaml"),
                    "other": ZeroDivisionError("by nothing"),
                    "unpicklable": Unpicklable("holds a lock", None),
                    "changed": Changed("all"),
                }[self.error]
            return score(coefficients, block)

        return evaluate


@dataclass(frozen=True)
class Stillborn:
    """Never stands."""

    def __call__(self) -> Evaluate:
        os.kill(os.getpid(), signal.SIGKILL)
        return score


@dataclass(frozen=True)
class CannotBeBuilt:
    """Fails when it is built."""

    def __call__(self) -> Evaluate:
        raise ConfigError("device: 'cuda' cannot be used")


@dataclass(frozen=True)
class Tells:
    """Writes down what it is, where it is, and when it begins; may take long over a candidate."""

    folder: Path
    endless: tuple[float, ...] = ()

    def __call__(self) -> Evaluate:
        here = seat()
        threads = os.environ.get("OMP_NUM_THREADS")
        told = self.folder / f"{os.getpid()}"
        told.with_suffix(".new").write_text(f"{here.index} {here.threads} {threads}")
        told.with_suffix(".new").rename(told)  # whoever looks finds it whole

        def evaluate(coefficients: Mapping[str, float], block: int | None) -> Trial:
            (self.folder / f"{os.getpid()}.busy").write_text(f"{coefficients.get('a')}")
            if coefficients.get("a") in self.endless:
                time.sleep(1e6)
            return score(coefficients, block)

        return evaluate


@dataclass(frozen=True)
class Counts:
    """Takes a while over each candidate, and writes down that it began."""

    folder: Path

    def __call__(self) -> Evaluate:
        def evaluate(coefficients: Mapping[str, float], block: int | None) -> Trial:
            with (self.folder / "begun").open("a") as begun:
                begun.write("\n")
            time.sleep(0.01)
            return score(coefficients, block)

        return evaluate


def candidates(generation: int) -> list[dict[str, float]]:
    rng = random.Random(generation)
    return [{"a": round(rng.random(), 3), "b": round(rng.random(), 3)} for _ in range(6)]


def racing_search(objective: JournalledObjective) -> list[float]:
    """Generations that look at a block first, and at the best in full."""
    told = []
    for generation in range(4):
        asked = candidates(generation)
        first = objective.many(asked, generation % 3)
        order = sorted(range(6), key=lambda i: -first[i].mean)
        told += [trial.mean for trial in objective.many([asked[i] for i in order[:3]])]
    problem = Problem(("a", "b"), objective, lambda c, name: 0.0)
    return [*told, search("heuristic_coefficient", problem).score]


def outcome(made: Executor, journal: Path) -> tuple[list[float], list[str]]:
    """What a search comes to with an executor, and what it leaves in the journal, in any order."""
    with closing(made), Journal(journal) as opened:
        found = racing_search(JournalledObjective(made, opened, scope="s", items=BLOCKS))
    return found, sorted(journal.read_text().splitlines())
