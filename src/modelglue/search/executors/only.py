"""An executor seen from someone who asks for one set of items alone."""

from collections.abc import Iterator, Sequence

from modelglue.search.executors import Executor, Job
from modelglue.search.problem import Trial


class Only:
    """Takes "all items" for those of one block, such as the items that accept a merge.

    Args:
        executor: whose; it stays open.
        block: as the executor's workers know it.
    """

    def __init__(self, executor: Executor, block: int) -> None:
        self._executor, self._block = executor, block

    @property
    def workers(self) -> int:
        """See `Executor`."""
        return self._executor.workers

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Trial]]:
        """See `Executor.run`."""
        return self._executor.run([Job(job.coefficients, self._block) for job in jobs])

    def close(self) -> None:
        """The executor is another's to close."""
