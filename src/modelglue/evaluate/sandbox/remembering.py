"""A sandbox that runs no program twice.

The candidates of a search write much the same programs for the same items, and running them takes
longer than a small model takes to write them.
"""

from collections.abc import Sequence

from modelglue.evaluate.sandbox.interface import (
    DEFAULT_LIMITS,
    Isolation,
    Limits,
    Outcome,
    Program,
    Sandbox,
)

# Sources are short; a bound for processes that never end.
_REMEMBERED = 200_000


class Remembering:
    """Another sandbox, and what came of the programs that it ran.

    A program's fate follows from its source (see `Program`), unless it ran out of time or memory,
    which may have been the machine's fault: such programs are run again.
    """

    def __init__(self, inner: Sandbox) -> None:
        self._inner = inner
        self._known: dict[tuple[Program, Limits, Isolation], Outcome] = {}

    @property
    def name(self) -> str:
        """See `Sandbox.name`."""
        return self._inner.name

    def run(
        self,
        programs: Sequence[Program],
        *,
        limits: Limits = DEFAULT_LIMITS,
        isolation: Isolation = "batch",
    ) -> list[Outcome]:
        """See `Sandbox.run`."""
        found = {p: self._known.get((p, limits, isolation)) for p in programs}
        new = [program for program, outcome in found.items() if outcome is None]
        fresh = self._inner.run(new, limits=limits, isolation=isolation) if new else []
        outcomes = {p: outcome for p, outcome in found.items() if outcome is not None}
        for program, outcome in zip(new, fresh, strict=True):
            outcomes[program] = outcome
            if outcome.reason in ("passed", "failed"):
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[program, limits, isolation] = outcome
        return [outcomes[program] for program in programs]
