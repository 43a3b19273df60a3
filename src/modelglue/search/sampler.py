"""CMA-ES by ask and tell, every member drawn from a random stream of its own.

A member's stream is keyed by (seed, generation, member) and generations are told in the order of
their members. So what is drawn depends on the scores alone: not on who evaluated them, in what
order they came back, or how often the search was killed and run again in between.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelglue.search.space import Point

SEPARABLE_FROM = 40
"""From this dimension on only variances are adapted (Ros & Hansen, 2008)."""

DIGITS = 9
"""Points are rounded to so many: rounding noise of linear algebra then never makes two of one."""


@dataclass(frozen=True)
class Cloud:
    """Where to draw from at first.

    Attributes:
        mean: the middle.
        sigma: the standard deviation of every coordinate.
        bounds: [dimension, 2].
        population: how many members a generation has; None for 4 + ⌊3 ln dimension⌋.
    """

    mean: Point
    sigma: float
    bounds: np.ndarray
    population: int | None = None

    @property
    def members(self) -> int:
        """How many members a generation has."""
        return self.population or 4 + math.floor(3 * math.log(max(1, len(self.mean))))


class Sampler:
    """One run of CMA-ES (Hansen, 2016, arXiv 1604.00772), up to its own end."""

    def __init__(self, cloud: Cloud, seed: int) -> None:
        self._cloud = cloud
        self._seed = seed
        self._flat = False
        self._cma = _optimiser(cloud)

    @property
    def members(self) -> int:
        """How many a generation has."""
        return self._cloud.members

    @property
    def mean(self) -> Point:
        """The middle of what it would draw next."""
        mean: Point = np.round(np.clip(self._cma.mean, *self._cloud.bounds.T), DIGITS)
        return mean

    @property
    def sigma(self) -> float:
        """The step size of what it would draw next."""
        return round(float(self._cma._sigma), DIGITS)  # cmaes tells it nowhere else

    def ask(self, generation: int) -> list[Point]:
        """The members of a generation; the same whenever they are asked for."""
        return [self._draw(generation, member) for member in range(self._cloud.members)]

    def _draw(self, generation: int, member: int) -> Point:
        self._cma.reseed_rng(stream(self._seed, generation, member))
        point: Point = np.round(self._cma.ask(), DIGITS)
        return point

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> bool:
        """Move on, given how good each member was; −∞ for one that could not be scored.

        Only ranks count. A member that failed comes after all that did not; of equal members the
        earlier one comes first.

        Returns:
            Whether it moved: where all are equal it stays.
        """
        losses = _losses(scores)
        self._flat = len(set(losses)) == 1
        if not self._flat:
            self._cma.tell(list(zip(points, losses, strict=True)))
        return not self._flat

    @property
    def ended(self) -> bool:
        """Whether drawing on is pointless.

        CMA-ES has met one of its own criteria, or the members of the last generation were all
        equal, which gives no direction to move in.
        """
        return self._flat or bool(self._cma.should_stop())

    def again(self) -> "Sampler":
        """A new start from where this one began, with twice as many members.

        Auger & Hansen, 2005 (IPOP); not from a random place, as that would be a random mixture.
        """
        cloud = self._cloud
        return Sampler(Cloud(cloud.mean, cloud.sigma, cloud.bounds, 2 * cloud.members), self._seed)


def stream(*key: int) -> int:
    """A seed for a random stream: 32 bits of a hash, so that near keys have far streams."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _losses(scores: Sequence[float]) -> list[float]:
    """What is minimised; failures 1 above the worst (only the order counts)."""
    finite = [-score for score in scores if math.isfinite(score)]
    worst = max(finite, default=0.0) + 1
    return [-score if math.isfinite(score) else worst for score in scores]


def _optimiser(cloud: Cloud) -> Any:
    from cmaes import CMA, SepCMA

    kind = CMA if len(cloud.mean) < SEPARABLE_FROM else SepCMA
    return kind(
        mean=cloud.mean.copy(),
        sigma=cloud.sigma,
        bounds=cloud.bounds,
        population_size=cloud.members,
    )
