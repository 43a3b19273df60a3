"""What a candidate's evaluation costs beside its forward passes."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from modelglue.evaluate.threads import threads_for
from modelglue.recipe.inputs import open_inputs
from modelglue.recipe.workers import Families
from search_zoo import Zoo

REPEATS = 5


def overhead(zoo: Zoo) -> dict[str, Any]:
    """Seconds of CPU of a candidate's evaluation, and of the model's own calls in it.

    Every candidate is another one, as in a search: what is kept from one to the next (tokens,
    layouts, programs that ran before) is kept here too, and the first two are left out.
    """
    members = zoo.searched("heuristics", ["heuristic_average"]).members
    config = zoo.config("overhead")
    rows: list[dict[str, float]] = []
    with open_inputs(config) as inputs, threads_for(0):
        family = Families(config, inputs, zoo.path / "adapters", config.names).of(members)
        parts = inputs.division.propose
        for number in range(REPEATS + 2):
            weights = {name: 1.0 + 0.1 * ((number + i) % 3) for i, name in enumerate(members)}
            total = sum(weights.values())
            candidate = {name: weight / total for name, weight in weights.items()}
            start = time.process_time(), time.perf_counter()
            model = family.model(candidate)
            merged = time.process_time() - start[0]
            calls = _Calls(model.module)
            by_task = {}
            for task in inputs.tasks:
                before = time.process_time(), calls.seconds
                task.evaluate(model, "search", sandbox=inputs.sandbox, part=parts[task.name])
                spent = time.process_time() - before[0]
                by_task[task.name] = spent - (calls.seconds - before[1])
            calls.stop()
            rows.append(
                {
                    "all": time.process_time() - start[0],
                    "wall": time.perf_counter() - start[1],
                    "forward": calls.seconds,
                    "merge": merged,
                    **{f"around {name}": seconds for name, seconds in by_task.items()},
                }
            )
    return {key: statistics.median(row[key] for row in rows[2:]) for key in rows[0]}


def print_overhead(found: Mapping[str, dict[str, Any]]) -> None:
    for name, one in found.items():
        around = 1 - one["forward"] / one["all"]
        print(
            f"{name}: {one['all']:.3f} CPU s a candidate, {one['forward']:.3f} in the model's own "
            f"calls: {100 * around:.1f} % around them ({one['wall']:.2f} s on the clock)"
        )
        for key, seconds in one.items():
            if key == "merge" or key.startswith("around"):
                print(f"    {key:20}{seconds:8.3f} CPU s")


class _Calls:
    """CPU seconds inside a module's own forward."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds = 0.0
        self._began = 0.0
        self._hooks = [
            module.register_forward_pre_hook(self._begin),
            module.register_forward_hook(self._end),
        ]

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, *_: Any) -> None:
        self._began = time.process_time()

    def _end(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._began
