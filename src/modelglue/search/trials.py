"""Trials that are written down at once and never made twice."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from modelglue.evaluate.scores import Scores
from modelglue.journal import Journal
from modelglue.search.blocks import Blocks
from modelglue.search.executors import Executor, Job
from modelglue.search.executors.serial import Serial
from modelglue.search.problem import Coefficients, Trial, canonical


class JournalledObjective:
    """An objective that looks into the journal first, and writes every new trial there.

    A strategy is deterministic given its trials, so a killed search needs no saved state: run it
    again, and it walks through the journalled trials to where it stopped.

    A candidate whose blocks all stand is known in full, and the other way round. One that failed on
    a block has failed. A failed trial stays failed; only under the same scope, as what else it was
    scored at may be what failed.

    Args:
        executor: makes the trials that do not stand; it stays open.
        journal: None keeps them in memory alone.
        scope: what these trials are filed under.
        items: which items are in which block, or how many there are where there is one block.
        earlier: scopes whose trials serve too, as far as they have all of `tasks`.
        tasks: what a candidate is scored at; None for whatever the executor gives.
        on_trial: told of everything that was asked for as soon as it stands, also if it stood
            already.

    Attributes:
        evaluated: trials made by this process, those of a block counted each.
    """

    def __init__(
        self,
        executor: Executor,
        journal: Journal | None,
        *,
        scope: str,
        items: Blocks | tuple[int, ...],
        earlier: Collection[str] = (),
        tasks: Collection[str] | None = None,
        on_trial: Callable[[Job, Trial], None] | None = None,
    ) -> None:
        self._executor = executor
        self._journal = journal
        self._scope = scope
        self._cut = items if isinstance(items, Blocks) else None
        self.items = items.items if isinstance(items, Blocks) else items
        if self._cut is None and self.blocks > 1:
            raise ValueError("of several blocks it must be known which items are in which: Blocks")
        self._tasks = tuple(self._cut.places) if self._cut and tasks is None else tasks
        self._on_trial = on_trial
        self.evaluated = 0
        self._known: dict[str, dict[int | None, Trial]] = {}
        for record in journal or ():
            if record.get("event") == "trial" and record.get("scope") in (scope, *earlier):
                self._remember(record)

    @property
    def blocks(self) -> int:
        """See `Objective`."""
        return len(self.items)

    def __call__(self, coefficients: Coefficients) -> Trial:
        """The candidate on all items, evaluated only as far as it does not stand yet."""
        (trial,) = self.many([coefficients])
        return trial

    def many(self, candidates: Sequence[Coefficients], block: int | None = None) -> list[Trial]:
        """See `Objective.many`; what does not stand yet goes to the executor together."""
        if block is not None and not 0 <= block < self.blocks:
            raise IndexError(f"there is no block {block} of {self.blocks}")
        block = None if self.blocks == 1 else block
        asked = [canonical(candidate) for candidate in candidates]
        waiting = {}
        for candidate in asked:
            if (trial := self._standing(candidate, block)) is not None:
                self._tell(candidate, block, trial)
            else:
                waiting[_key(candidate)] = candidate
        jobs = [job for each in waiting.values() for job in self._missing(each, block)]
        for index, made in self._executor.run(jobs) if jobs else ():
            candidate = dict(jobs[index].coefficients)
            self._keep(jobs[index], made)
            trial = self._standing(candidate, block)
            # Where a block failed, others may still be under way: told of once.
            if trial is not None and waiting.pop(_key(candidate), None) is not None:
                self._tell(candidate, block, trial)
        if waiting:
            raise RuntimeError(f"the executor left {len(waiting)} candidates without a trial")
        found = [self._standing(candidate, block) for candidate in asked]
        return [trial for trial in found if trial is not None]

    def __len__(self) -> int:
        """Different candidates that stand at least in part, of this process and earlier ones."""
        return len(self._known)

    def _standing(self, candidate: Coefficients, block: int | None) -> Trial | None:
        known = self._known.get(_key(candidate), {})
        if block in known or self._cut is None:
            return known.get(block)
        if block is not None:
            whole = known.get(None)
            if whole is None or whole.scores is None:
                return whole
            return Trial(self._cut.part(whole.scores, block))
        parts = [known[number] for number in range(self.blocks) if number in known]
        failed = next((part for part in parts if part.scores is None), None)
        if failed is not None or len(parts) < self.blocks:
            return failed
        known[None] = Trial(self._cut.join([part.scores for part in parts if part.scores]))
        return known[None]

    def _missing(self, candidate: Coefficients, block: int | None) -> list[Job]:
        """What is to be evaluated: blocks that stand are not evaluated once more."""
        known = self._known.get(_key(candidate), {})
        if block is not None or not known:
            return [Job(candidate, block)]
        return [Job(candidate, number) for number in range(self.blocks) if number not in known]

    def _keep(self, job: Job, trial: Trial) -> None:
        if self._journal is not None:
            came = (
                {"failed": trial.failure}
                if trial.scores is None
                else {"mean": trial.mean, "scores": trial.scores.to_json()}
            )
            self._journal.append(
                {
                    "event": "trial",
                    "scope": self._scope,
                    "coefficients": job.coefficients,
                    "block": job.block,
                    **came,
                }
            )
        self._known.setdefault(_key(job.coefficients), {})[job.block] = trial
        self.evaluated += 1

    def _remember(self, record: Mapping[str, Any]) -> None:
        # A journal of a version that knew no blocks holds trials on all items.
        block = record.get("block")
        if "failed" in record:
            trial = Trial(None, record["failed"]) if record["scope"] == self._scope else None
        else:
            trial = self._narrowed(Scores.from_json(record["scores"]), block)
        if trial is not None:
            self._known.setdefault(_key(record["coefficients"]), {})[block] = trial

    def _narrowed(self, scores: Scores, block: int | None) -> Trial | None:
        """A journalled trial at the tasks that are asked for; None if it does not serve."""
        if self._tasks is not None:
            if not set(self._tasks) <= scores.by_task().keys():
                return None
            scores = Scores(tuple(scores[task] for task in self._tasks))
        fits = self._cut.fits(scores, block) if self._cut is not None else block is None
        return Trial(scores) if fits else None

    def _tell(self, candidate: Coefficients, block: int | None, trial: Trial) -> None:
        if self._on_trial is not None:
            self._on_trial(Job(candidate, block), trial)


def in_memory(
    function: Callable[[Coefficients], Scores | Trial], *, blocks: Blocks | None = None
) -> JournalledObjective:
    """The objective of a plain function that scores a candidate on all items.

    Args:
        function: pure; asked once for each block where candidates are compared block by block.
        blocks: which of its items are in which block; by default they are one block, that counts
            as one item.
    """

    def evaluate(coefficients: Coefficients, block: int | None) -> Trial:
        found = function(coefficients)
        trial = found if isinstance(found, Trial) else Trial(found)
        if blocks is None or block is None or trial.scores is None:
            return trial
        return Trial(blocks.part(trial.scores, block))

    return JournalledObjective(
        Serial(evaluate), None, scope="", items=(1,) if blocks is None else blocks
    )


def _key(candidate: Coefficients) -> str:
    return json.dumps(candidate)
