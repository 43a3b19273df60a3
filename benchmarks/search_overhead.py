"""What a candidate's evaluation costs beside its forward passes.

An evolution as `glue` runs it: trials journalled with every item's score, the study mirrored for
Optuna, every candidate another one. Once with all items for all candidates, once raced.
"""

import copy
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelglue.evaluate.sandbox import Outcome, Program, Sandbox, probe
from modelglue.evaluate.sandbox.remembering import Remembering
from modelglue.evaluate.threads import threads_for
from modelglue.journal import Journal
from modelglue.recipe.config import RecipeConfig
from modelglue.recipe.inputs import Inputs, open_inputs
from modelglue.recipe.objective import Family
from modelglue.recipe.workers import Families, blocks_of, parts_of, scorer
from modelglue.search.executors.serial import Serial
from modelglue.search.problem import Problem, Tried, search
from modelglue.search.study import Study
from modelglue.search.trials import JournalledObjective
from search_zoo import TRIALS, Zoo

WAYS = {"all items": "off", "raced": "on"}
REPLAYED = 3


def overhead(zoo: Zoo) -> dict[str, Any]:
    """Seconds of a search, on the clock and of processors, by what they went to."""
    members = zoo.members
    config = zoo.config("overhead")
    found = {}
    with open_inputs(config) as inputs, threads_for(0):
        for way, racing in WAYS.items():
            with tempfile.TemporaryDirectory(dir=zoo.path) as folder:
                family = Families(config, inputs, zoo.path / "adapters", config.names).of(members)
                run = _Run(config, inputs, family, members, Path(folder), zoo.seed)
                found[way] = run.measured(racing)
    return found


def print_overhead(found: Mapping[str, dict[str, Any]]) -> None:
    for name, ways in found.items():
        for way, one in ways.items():
            clock, cpu = one["clock"], one["cpu"]
            print(
                f"{name}, {way}: {one['candidates']} candidates, {clock['all']:.3f} s each on the "
                f"clock; the same batches given to the bare model take "
                f"{one['bare']:.3f} of the time that is in its calls"
            )
            print(f"{'':26}clock  processor")
            for part in clock:
                print(f"    {part:20}{clock[part]:7.4f}{cpu[part]:11.4f} s a candidate")
            for unit, spent in (("clock", clock), ("processor", cpu)):
                rest = spent["all"] - spent["forward"]
                print(f"    around the forward passes, {unit}: {100 * rest / spent['all']:.1f} %")
    print(
        "\nPrograms run beside the model's next task: their time on the clock is no part of the "
        "rest.\nThose that bubblewrap ends are not waited for: their processor time is not counted."
    )


@dataclass(frozen=True)
class _Run:
    """One search, put together as `recipe.family` does, with a clock at every joint."""

    config: RecipeConfig
    inputs: Inputs
    family: Family
    members: tuple[str, ...]
    folder: Path
    seed: int

    def measured(self, racing: str) -> dict[str, Any]:
        """Seconds a candidate; singles, which are loaded from disk, and what is made once aside."""
        clock, tasks = _Clock(), self.inputs.tasks
        propose = self.inputs.division.propose
        blocks = blocks_of(tasks, propose, self.config.search.blocks)
        sandbox = Remembering(_Timed(probe(), clock)) if self.inputs.sandbox else None
        evaluate = scorer(lambda: self.family, tasks, parts_of(tasks, propose, blocks), sandbox)
        with _Journal(self.folder / "journal.jsonl", clock) as journal:
            objective = JournalledObjective(Serial(evaluate), journal, scope="s", items=blocks)
            study = Study(self.folder / "optuna.journal", "s")

            def tell(tried: Sequence[Tried]) -> None:
                with clock("mirror"):
                    study.add(tried)

            even = dict.fromkeys(self.members, 1 / len(self.members))
            known = [*({name: 1.0} for name in self.members), even]
            objective.many(known)
            problem = Problem(
                self.members,
                objective,
                self.family.similarity,
                dials=self.family.dials(),
                options={"trials": TRIALS + len(known), "racing": racing},
                seed=self.seed,
                tell=tell,
            )
            module = self.family.model(even).module
            clock.reset()
            with _timed_merges(self.family, clock), _timed_calls(module, clock), clock("all"):
                result = search("evolution", problem)
            candidates = result.trials - len(known)
            clock_seconds, cpu = clock.seconds(candidates)
            return {
                "candidates": candidates,
                "clock": clock_seconds,
                "cpu": cpu,
                "bare": self._bare(evaluate, module),
            }

    def _bare(self, evaluate: Callable[..., Any], module: torch.nn.Module) -> float:
        """Time of the bare model on copies of all batches, in parts of that of its own calls."""
        draw, clock = np.random.default_rng(self.seed), _Clock()
        with _timed_copies(module, clock), _timed_calls(module, clock):
            for _ in range(REPLAYED):
                weights = draw.dirichlet(np.ones(len(self.members)))
                evaluate(dict(zip(self.members, weights.tolist(), strict=True)), None)
        spent, _ = clock.seconds(1)
        return spent["bare"] / spent["forward"]


class _Clock:
    """Seconds on the clock and of processors, by what they went to.

    Of processors: in all, those of this process and its children; of a part, those of its thread.
    """

    def __init__(self) -> None:
        self._spent: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        self._spent = defaultdict(lambda: np.zeros(2))
        for part in ("all", "forward", "merge", "programs", "journal", "mirror"):
            self._spent[part] += 0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = _now(part)
        yield
        self.add(part, began)

    def add(self, part: str, began: Any) -> None:
        self._spent[part] += _now(part) - began

    def seconds(self, number: int) -> tuple[dict[str, float], dict[str, float]]:
        """On the clock, and of processors; each by so many."""
        one, other = (
            {part: float(spent[unit]) / number for part, spent in self._spent.items()}
            for unit in (0, 1)
        )
        return one, other


def _now(part: str) -> Any:
    cpu = time.thread_time()
    if part == "all":
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() + children.ru_utime + children.ru_stime
    return np.array([time.perf_counter(), cpu])


class _Timed:
    """A sandbox with a clock."""

    def __init__(self, inner: Sandbox, clock: _Clock) -> None:
        self._inner, self._clock, self.name = inner, clock, inner.name

    def run(self, programs: Sequence[Program], **how: Any) -> list[Outcome]:
        with self._clock("programs"):
            return self._inner.run(programs, **how)


class _Journal(Journal):
    """A journal with a clock."""

    def __init__(self, path: Path, clock: _Clock) -> None:
        super().__init__(path)
        self._clock = clock

    def append(self, record: Mapping[str, Any]) -> None:
        with self._clock("journal"):
            super().append(record)


@contextmanager
def _timed_merges(family: Family, clock: _Clock) -> Iterator[None]:
    merge = family.model

    def model(coefficients: Mapping[str, float]) -> Any:
        with clock("merge"):
            return merge(coefficients)

    family.model = model  # type: ignore[method-assign]
    try:
        yield
    finally:
        del family.model


@contextmanager
def _timed_calls(module: torch.nn.Module, clock: _Clock) -> Iterator[None]:
    """What is spent inside the module's own forward."""
    began: list[Any] = []
    hooks = (
        module.register_forward_pre_hook(lambda *_: began.append(_now("forward"))),
        module.register_forward_hook(lambda *_: clock.add("forward", began.pop())),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _timed_copies(module: torch.nn.Module, clock: _Clock) -> Iterator[None]:
    """Before each call, the same one with copies of all that is given, caches among it."""

    def again(_: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        arguments, keywords = copy.deepcopy((given, named))
        with clock("bare"):
            # The hooks of the module are passed by; those of its parts belong to the batch.
            module.forward(*arguments, **keywords)

    hook = module.register_forward_pre_hook(again, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
