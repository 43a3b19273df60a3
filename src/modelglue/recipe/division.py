"""The search items of every task in two parts: what proposes candidates, and what accepts one.

A search that looks at a hundred candidates finds one that is lucky on its items. Whether it is
better is therefore asked of items that no strategy saw.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from modelglue.errors import ConfigError
from modelglue.evaluate.task import Task

Parts = Mapping[str, tuple[int, ...]]
"""Task name → indices of its search items, rising."""

_FEWEST_GROUPS = 2


@dataclass(frozen=True)
class Division:
    """Which search items propose and which accept; disjoint, and no group is in both.

    Attributes:
        accept: empty where every gain is to be believed.
    """

    propose: Parts
    accept: Parts

    def of(self, names: Sequence[str]) -> "Division":
        """The same for some of the tasks."""
        return Division(
            {name: self.propose[name] for name in names},
            {name: self.accept[name] for name in names if name in self.accept},
        )


def divide(tasks: Sequence[Task], share: float) -> Division:
    """Cut by a hash of the items' groups, so that neither files' order nor a seed matters.

    Args:
        share: of the items that accept; 0 for none.

    Raises:
        ConfigError: a task has too few groups to be cut.
    """
    if not share:
        every = {task.name: tuple(range(len(task.items("search")))) for task in tasks}
        return Division(every, {})
    propose, accept, problems = {}, {}, []
    for task in tasks:
        groups: dict[str, list[int]] = {}
        for index, item in enumerate(task.items("search")):
            groups.setdefault(item.group, []).append(index)
        ordered = sorted(groups, key=lambda group: _place(task.name, group))
        wanted = math.ceil(share * len(task.items("search")))
        count = taken = 0
        while taken < wanted:
            taken += len(groups[ordered[count]])
            count += 1
        if min(count, len(ordered) - count) < _FEWEST_GROUPS:
            problems.append(
                f"search.validation: task {task.name} has {len(groups)} groups of search items, "
                f"too few to set {share:g} of them aside; add items, or set it to 0"
            )
        accept[task.name] = _indices(groups, ordered[:count])
        propose[task.name] = _indices(groups, ordered[count:])
    if problems:
        raise ConfigError(problems)
    return Division(propose, accept)


def accepting_groups(tasks: Sequence[Task], division: Division) -> int:
    """How many groups of these tasks' items accept."""
    return sum(
        len({task.items("search")[index].group for index in division.accept.get(task.name, ())})
        for task in tasks
    )


def least_p(groups: int) -> float:
    """The smallest p-value that a sign-flip test by so many groups can come to."""
    return math.ldexp(1.0, -groups)


def _indices(groups: Mapping[str, list[int]], names: Sequence[str]) -> tuple[int, ...]:
    return tuple(sorted(index for name in names for index in groups[name]))


def _place(task: str, group: str) -> bytes:
    return blake2b(f"{task}\0{group}".encode(), digest_size=8).digest()
