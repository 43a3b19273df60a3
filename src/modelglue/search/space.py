"""Points that an evolution moves through, and the candidates that they stand for.

Normalising n weights to the sum 1 leaves a direction that changes nothing, and 0 / 0 in the middle
of it. So weights that are normalised have n − 1 coordinates here: those of an orthonormal basis of
the hyperplane of sum 0, around the even mixture 1 / n. The basis keeps angles and ratios of
lengths, so a cloud that is round in the coordinates is round in the weights, and no model is
preferred to another.

One σ serves all coordinates. Other parameters count in parts of their range. The unit of weights is
1 / √k for k free ones, so that a step of σ in each moves the mixture by σ, however many models
there are: with a unit of 1, nearly all of a cloud over 16 models lies beyond the single ones, and
CMA-ES spends its first generations on drawing it together.

Weights may fall below 0 (a model's change is then taken back), as nothing in a mixture forbids it.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from modelglue.search.knobs import EVERY_MODEL, Knob
from modelglue.search.problem import Coefficients, Dial, Dials

Point = np.ndarray
"""[dimension] float64."""

CANCELLED = 1e-9
"""Weights whose sum is below this have no ratios worth the name."""


@dataclass(frozen=True)
class Space:
    """All candidates of some models under a method.

    The coordinates are the weights, group by group, then the other parameters. Groups have weights
    of their own; where a method has no weights, they have the other parameters of their own.

    Attributes:
        names: the models.
        dials: what the method lets a search turn.
    """

    names: tuple[str, ...]
    dials: Dials

    @property
    def dimension(self) -> int:
        """How many coordinates a point has."""
        return self._weights + len(self._others)

    @property
    def start(self) -> Point:
        """The even mixture, every other parameter where its dial starts."""
        alike = 0.0 if self.dials.normalised else self._even / self._unit
        others = [_part(dial, dial.start) for dial, _ in self._others]
        return np.array([alike] * self._weights + others)

    @property
    def bounds(self) -> np.ndarray:
        """[dimension, 2]: the lowest and the highest of each coordinate; weights have none."""
        open_ended, range_ = (-math.inf, math.inf), (0.0, 1.0)
        rows = [open_ended] * self._weights + [range_] * len(self._others)
        return np.array(rows).reshape(-1, 2)

    def candidate(self, point: Point) -> dict[str, float]:
        """What a point stands for."""
        weights = self._unit * point[: self._weights].reshape(len(self._groups), -1)
        found: dict[str, float] = {}
        for group, row in zip(self._groups, weights, strict=True):
            own = row
            if self.dials.normalised or not self.dials.weighted:
                own = self._even + self._basis[:, : row.size] @ row
            found |= {str(Knob(m, group)): float(w) for m, w in zip(self.names, own, strict=True)}
        for (dial, knob), part in zip(self._others, point[self._weights :], strict=True):
            found[str(knob)] = dial.low + float(part) * (dial.high - dial.low)
        return found

    def point(self, candidate: Coefficients) -> Point:
        """Where a candidate lies, for a search that starts from it.

        A number that holds for all groups holds in each; one that is given for other groups only
        is their mean; a model without a weight weighs 0; another parameter that is not given
        stands where its dial starts.
        """
        read = {Knob.parse(name): number for name, number in candidate.items()}
        coordinates: list[float] = []
        for group in self._groups if self._weights else ():
            own = np.array([_of(read, Knob(name, group), 0.0) for name in self.names])
            if self.dials.normalised:
                # The projection drops 1 / n; weights that cancel are no mixture: the even one then.
                total = own.sum()
                own = self._basis.T @ (own / total if abs(total) > CANCELLED else 0 * own)
            coordinates += (own / self._unit).tolist()
        for dial, knob in self._others:
            start = self._share(candidate) if dial.name == "t" else None
            value = _of(read, knob, dial.start if start is None else start)
            coordinates.append(min(max(_part(dial, value), 0.0), 1.0))
        return np.array(coordinates)

    @property
    def _even(self) -> float:
        free = self.dials.weighted and not self.dials.normalised
        return self.dials.weight if free and self.dials.weight else 1 / len(self.names)

    @cached_property
    def _groups(self) -> tuple[str, ...]:
        """Labels of the groups that have weights of their own."""
        return (self.dials.groups or ("",)) if self.dials.weighted else ("",)

    @cached_property
    def _weights(self) -> int:
        """How many coordinates are of weights."""
        return len(self._groups) * self._free if self.dials.weighted else 0

    @property
    def _free(self) -> int:
        """How many weights of a group can be chosen freely."""
        return len(self.names) - 1 if self.dials.normalised else len(self.names)

    @property
    def _unit(self) -> float:
        return 1 / math.sqrt(max(1, self._free))

    @cached_property
    def _others(self) -> tuple[tuple[Dial, Knob], ...]:
        """The other parameters, each with its dial."""
        groups = ("",) if self.dials.weighted else self.dials.groups or ("",)
        return tuple(
            (dial, Knob(model, group, dial.name))
            for dial in self.dials.others
            for group in groups
            for model in (self.names if dial.per_model else (EVERY_MODEL,))
        )

    @cached_property
    def _basis(self) -> np.ndarray:
        return sum_zero_basis(len(self.names))

    def _share(self, candidate: Coefficients) -> float | None:
        """What t is of a mixture of two that is given by weights: the share of the second."""
        weights = [candidate.get(name, 0.0) for name in self.names]
        if len(weights) != 2 or not sum(weights):
            return None
        return weights[1] / sum(weights)


def sum_zero_basis(n: int) -> np.ndarray:
    """An orthonormal basis of the vectors of sum 0: [n, n − 1], after Helmert.

    >>> sum_zero_basis(2).round(3).tolist()
    [[0.707], [-0.707]]
    """
    basis = np.zeros((n, n - 1))
    for k in range(1, n):
        basis[:k, k - 1] = 1
        basis[k, k - 1] = -k
        basis[:, k - 1] /= math.sqrt(k * (k + 1))
    return basis


def _part(dial: Dial, value: float) -> float:
    return (value - dial.low) / (dial.high - dial.low)


def _of(read: dict[Knob, float], knob: Knob, missing: float) -> float:
    """A knob's number in a candidate: its own, that for all groups, or the mean of groups'."""
    for exact in (knob, Knob(knob.model, "", knob.parameter)):
        if exact in read:
            return read[exact]
    shared = [n for k, n in read.items() if (k.model, k.parameter) == (knob.model, knob.parameter)]
    return math.fsum(shared) / len(shared) if shared else missing
