"""The similarity map in words: families, and each model's nearest."""

from dataclasses import dataclass

from modelglue.report.data import SimilarityMap


def similarity_order(similarity: SimilarityMap) -> list[int]:
    """Indices of `names`, family by family, those without a family last."""
    position = {name: i for i, name in enumerate(similarity.names)}
    ordered = [
        position[name] for family in similarity.families for name in family if name in position
    ]
    return list(dict.fromkeys([*ordered, *range(len(similarity.names))]))


@dataclass(frozen=True)
class Neighbours:
    """A model's most similar models, inside its family and outside it."""

    name: str
    family: int | None
    inside: tuple[str, float] | None
    outside: tuple[str, float] | None


def neighbours(similarity: SimilarityMap) -> list[Neighbours]:
    """The heat map in words: each model's nearest, in the order of the map."""
    family_of = {name: i for i, family in enumerate(similarity.families) for name in family}
    found = []
    for i in similarity_order(similarity):
        name = similarity.names[i]
        family = family_of.get(name)
        near: dict[bool, tuple[str, float]] = {}
        for j, other in enumerate(similarity.names):
            value = cell(similarity, i, j)
            inside = family is not None and family_of.get(other) == family
            if i != j and value is not None and (inside not in near or value > near[inside][1]):
                near[inside] = (other, value)
        found.append(Neighbours(name, family, near.get(True), near.get(False)))
    return found


@dataclass(frozen=True)
class FamilySummary:
    """A family and the two similarities that made it one."""

    family: int
    members: tuple[str, ...]
    lowest_inside: float | None
    highest_outside: float | None


def family_summaries(similarity: SimilarityMap) -> list[FamilySummary]:
    """Each family with its loosest pair and its nearest stranger, None without such a pair."""
    position = {name: i for i, name in enumerate(similarity.names)}
    summaries = []
    for index, members in enumerate(similarity.families):
        mine = {position[name] for name in members if name in position}
        inside = [cell(similarity, i, j) for i in mine for j in mine if i < j]
        outside = [cell(similarity, i, j) for i in mine for j in position.values() if j not in mine]
        summaries.append(
            FamilySummary(
                index,
                members,
                min((value for value in inside if value is not None), default=None),
                max((value for value in outside if value is not None), default=None),
            )
        )
    return summaries


def cell(similarity: SimilarityMap, i: int, j: int) -> float | None:
    """A cell of the matrix, None where the matrix has none."""
    matrix = similarity.matrix
    return matrix[i][j] if i < len(matrix) and j < len(matrix[i]) else None
