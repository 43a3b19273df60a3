"""One job after the other, in this process."""

from collections.abc import Iterator, Sequence

from modelglue.search.executors import Evaluate, Job
from modelglue.search.problem import Trial


class Serial:
    """An executor without workers of its own."""

    workers = 1

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Trial]]:
        """See `Executor.run`."""
        for index, job in enumerate(jobs):
            yield index, self._evaluate(job.coefficients, job.block)

    def close(self) -> None:
        """Nothing is left to be ended."""
