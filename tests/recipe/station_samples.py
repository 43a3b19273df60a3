"""A family's worker that meets with an accident."""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from modelglue.recipe.workers import Station
from modelglue.search.executors import Evaluate
from modelglue.search.problem import Trial


@dataclass(frozen=True)
class Mortal(Station):
    """The first worker that comes to its second candidate dies in the middle of it."""

    def __call__(self) -> Evaluate:
        evaluate = super().__call__()
        done = 0

        def mortal(coefficients: Mapping[str, float], block: int | None) -> Trial:
            nonlocal done
            done += 1
            if done == 2:
                with suppress(FileExistsError):
                    (self.config.root / "killed").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return evaluate(coefficients, block)

        return mortal
