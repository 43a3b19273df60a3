"""Families: models that can be merged and are alike, whatever order they were given in.

Complete linkage: two families are joined only if *every* pair across them is mergeable and at
least as similar as the threshold; the pair of families whose least similar members are most alike
is joined first, and ties go by name. So in a family every pair passes, and the result depends on
the set of models alone. The paper's code compares with the first member of each family instead:
there a model between two others can be taken in or not depending on which came first. Single
linkage would be independent of the order too, but chains: a drifted model gets in through a friend
of a friend.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.errors import InputError
from modelglue.zoo.compatibility import incompatibility
from modelglue.zoo.names import unique_names
from modelglue.zoo.similarity import Measure, Of, Progress, Similarity, similarities

Pair = tuple[str, str]
Family = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Clustering:
    """Which models belong together, and for every other pair why it does not.

    Attributes:
        similarity: of all pairs.
        threshold: the least similarity inside a family.
        families: largest first, then by name; names sorted in each. Every model is in one.
        reasons: for every pair (a, b), a < b, that is not in one family: the reason in words.
    """

    similarity: Similarity
    threshold: float
    families: tuple[Family, ...]
    reasons: Mapping[Pair, str]

    def family_of(self, name: str) -> int:
        """The index of the family that a model is in."""
        for index, family in enumerate(self.families):
            if name in family:
                return index
        raise InputError(f"no model is called {name!r}. Known: {', '.join(self.similarity.names)}.")

    def reason(self, a: str, b: str) -> str | None:
        """Why two models are not in one family; None if they are."""
        return self.reasons.get(_pair(a, b))

    def to_json(self) -> dict[str, Any]:
        """Plain data: the similarity's, with threshold, families and reasons beside it."""
        return {
            **self.similarity.to_json(),
            "threshold": self.threshold,
            "families": [list(family) for family in self.families],
            "reasons": [{"a": a, "b": b, "reason": why} for (a, b), why in self.reasons.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Clustering":
        """What `to_json` made."""
        return cls(
            similarity=Similarity.from_json(data),
            threshold=data["threshold"],
            families=tuple(tuple(family) for family in data["families"]),
            reasons={(entry["a"], entry["b"]): entry["reason"] for entry in data["reasons"]},
        )


def cluster(
    checkpoints: Sequence[Checkpoint],
    *,
    base: Checkpoint | None = None,
    threshold: float = 0.95,
    measure: Measure = "column",
    of: Of = "weights",
    names: Sequence[str] | None = None,
    fingerprint: bool = False,
    progress: Progress | None = None,
) -> Clustering:
    """The families among checkpoints: one pass over the weights, and the reasons in words.

    Args:
        checkpoints: [n].
        base: what task vectors are taken from; weights need none.
        threshold: the least similarity inside a family; the paper's 0.95 is meant for weights.
        measure: as in `similarities`.
        of: "weights" or "task_vectors".
        names: [n], unique; by default the folders' names, with parents where needed.
        fingerprint: digest the models in the same pass, as in `similarities`.
        progress: called with the bytes read so far and the bytes to read.
    """
    _refuse_threshold(threshold)
    labels = unique_names(checkpoints, names)
    reasons = {
        _pair(labels[i], labels[j]): reason
        for i, j in itertools.combinations(sorted(range(len(labels)), key=labels.__getitem__), 2)
        if (reason := incompatibility(checkpoints[i], checkpoints[j], names=(labels[i], labels[j])))
    }
    similarity = similarities(
        checkpoints,
        base=base,
        measure=measure,
        of=of,
        names=labels,
        fingerprint=fingerprint,
        progress=progress,
    )
    return families(similarity, reasons, threshold=threshold)


def families(
    similarity: Similarity, reasons: Mapping[Pair, str], *, threshold: float = 0.95
) -> Clustering:
    """Complete linkage over the pairs that are mergeable.

    Args:
        similarity: of all pairs.
        reasons: why pairs cannot be merged, however similar they are; pairs in any order.
        threshold: the least similarity inside a family, at most 1.
    """
    _refuse_threshold(threshold)
    refused = {_pair(*pair): why for pair, why in reasons.items()}
    names = sorted(similarity.names)
    links = {
        (a, b): -math.inf if (a, b) in refused else _or_least(similarity.between(a, b))
        for a, b in itertools.combinations(names, 2)
    }
    found = _complete_linkage(names, links, threshold)
    home = {name: family for family in found for name in family}
    why = {
        (a, b): refused.get((a, b)) or _too_far(a, b, home[a], home[b], links, refused, threshold)
        for a, b in links
        if home[a] != home[b]
    }
    return Clustering(similarity, threshold, found, why)


def _complete_linkage(
    names: Sequence[str], links: Mapping[Pair, float], threshold: float
) -> tuple[Family, ...]:
    found: list[Family] = [(name,) for name in names]
    while True:
        joins = [
            (-min(links[_pair(a, b)] for a in one for b in other), one, other)
            for one, other in itertools.combinations(sorted(found), 2)
        ]
        nearest = min(joins, default=None)
        if nearest is None or -nearest[0] < threshold:
            return tuple(sorted(found, key=lambda family: (-len(family), family)))
        _, one, other = nearest
        found = [family for family in found if family not in (one, other)]
        found.append(tuple(sorted(one + other)))


def _too_far(
    a: str,
    b: str,
    home_a: Family,
    home_b: Family,
    links: Mapping[Pair, float],
    refused: Mapping[Pair, str],
    threshold: float,
) -> str:
    """Why a mergeable pair is not in one family."""
    link = links[a, b]
    if link == -math.inf:
        return "similarity: they have no attention or MLP matrices in common"
    if link < threshold:
        return f"similarity {_below(link, threshold)}"
    # The families were not joined, so some pair across them is refused or too far apart.
    across = sorted(_pair(x, y) for x in home_a for y in home_b)
    x, y = min(across, key=lambda pair: links[pair])
    apart = refused.get((x, y)) or f"similarity {_below(links[x, y], threshold)}"
    return (
        f"similarity {link:.3g} is enough, but {x} and {y}, which would be in the same family, "
        f"are apart: {apart}"
    )


def _below(value: float, threshold: float) -> str:
    """The two numbers with as many digits as it takes to see that they differ.

    >>> _below(0.88, 0.95), _below(0.94999, 0.95)
    ('0.88 < 0.95', '0.94999 < 0.95')
    """
    for digits in range(2, 17):
        short = f"{value:.{digits}f}"
        if float(short) < threshold:
            return f"{short} < {threshold:g}"
    return f"{value!r} < {threshold!r}"


def _pair(a: str, b: str) -> Pair:
    return (a, b) if a < b else (b, a)


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _refuse_threshold(threshold: float) -> None:
    if not -1 <= threshold <= 1:
        raise InputError(f"threshold {threshold} is not a cosine: give one between -1 and 1.")
