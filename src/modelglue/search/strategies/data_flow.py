"""Data flow: which layers of which models follow one another (Akiba et al., arXiv 2403.13187)."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from modelglue.errors import ConfigError
from modelglue.search.evolution import (
    Plan,
    Standing,
    concluded,
    key,
    note_generation,
    score_generation,
)
from modelglue.search.knobs import Knob
from modelglue.search.problem import ON, STRATEGIES, Option, Problem, completed, takes
from modelglue.search.result import SearchResult
from modelglue.search.sampler import stream
from modelglue.search.singles import score_singles

OPTIONS: Mapping[str, Option] = {
    "trials": Option("integer", 100, "candidates in all, the single models among them", low=1),
    "population": Option("integer", 8, "children of a generation", low=1),
    "most_layers": Option(
        "integer", None, "layers that a path may have; half as many again as a model", low=1
    ),
    "repeats": Option("integer", 2, "how often the layers of one depth may stand", low=1),
    "scales": Option(
        "choice", "on", "whether what enters a layer is scaled, if it can be", choices=("on", "off")
    ),
    "racing": Option("choice", "on", "stop paths that cannot win", choices=("on", "off")),
    "race_level": Option(
        "number", 0.1, "the chance of stopping one that is as good as the best", low=1e-6, high=0.5
    ),
}

LONGEST_STRETCH = 1 / 4
"""Of a model: how many layers one move may touch."""

SCALE_STEP = 0.2
SCALES = (0.5, 2.0)
"""A layer's scale moves by a factor exp(N(0, 0.2²)) and stays in this range."""


@dataclass(frozen=True)
class Place:
    """One layer of a path."""

    model: str
    layer: int
    scale: float = 1.0


Path = tuple[Place, ...]


@dataclass(frozen=True)
class Limits:
    """What paths there are.

    Attributes:
        names: the models.
        depth: layers of each.
        most_layers: of a path.
        repeats: how often the layers of one depth may stand in it, of whichever models.
        scaled: whether a layer may have another scale than 1.
    """

    names: tuple[str, ...]
    depth: int
    most_layers: int
    repeats: int
    scaled: bool = True

    def allow(self, path: Path) -> bool:
        """Whether a path is one of them."""
        often = Counter(place.layer for place in path)
        return 0 < len(path) <= self.most_layers and max(often.values()) <= self.repeats


@STRATEGIES.register("data_flow")
@takes(OPTIONS)
def data_flow(problem: Problem) -> SearchResult:
    """Change the path that a token takes: layers are swapped, repeated, left out and scaled.

    The path starts as the best single model's own layers. Each generation has some children of the
    best path so far, each one or a few moves away (see `moved`); the best child takes its place
    unless it is worse: (1+λ), where equally good ones drift on, as most moves of a long path change
    few answers. The best path that was found first wins.

    Differs from the paper: it lets CMA-ES set an indicator for every layer of every model in a
    fixed sequence of repeats, and a matrix of scales, with ten thousands of trials; moves from a
    path that works need tens.

    Raises:
        ConfigError: it is not known how many layers the models have, or they have more than a path
            may have.
    """
    if problem.dials.layers < 1:
        raise ConfigError("data_flow: these models have no numbered layers to put in another order")
    options = completed("data_flow", problem.options)
    depth = problem.dials.layers
    longest = options["most_layers"] or depth + math.ceil(depth / 2)
    if longest < depth:
        raise ConfigError(f"data_flow: most_layers is {longest}, and the models have {depth}")
    scaled = options["scales"] in ON and problem.dials.scales
    limits = Limits(problem.names, depth, longest, options["repeats"], scaled)
    level = options["race_level"] if options["racing"] in ON else None
    plan = Plan(trials=options["trials"], sigma=0.0, level=level)
    standing = Standing.of_singles(score_singles(problem))
    (best,) = standing.coefficients
    parent = tuple(Place(best, layer) for layer in range(depth))
    score = standing.trial.mean
    while standing.trials < plan.trials:
        most = min(options["population"], plan.trials - standing.trials)
        children = _children(parent, limits, problem.seed, standing, most)
        if not children:
            break
        candidates = [spelled(child, depth) for child in children]
        blocks = problem.objective.blocks
        race = score_generation(problem, plan, candidates, standing, blocks=blocks)
        note_generation(problem, candidates, race, standing, blocks=blocks)
        ranked = [-math.inf if s else e for e, s in zip(race.estimates, race.stopped, strict=True)]
        first = max(range(len(children)), key=lambda child: ranked[child])
        if ranked[first] >= score:
            parent, score = children[first], ranked[first]
    return concluded("data_flow", standing)


def spelled(path: Path, depth: int) -> dict[str, float]:
    """The candidate that a path stands for; a model's own layers are that model."""
    own = tuple(Place(path[0].model, layer) for layer in range(depth))
    if path == own:
        return {path[0].model: 1.0}
    return {
        str(Knob(place.model, f"layer {place.layer}", f"place {number}")): place.scale
        for number, place in enumerate(path)
    }


def _children(parent: Path, limits: Limits, seed: int, standing: Standing, most: int) -> list[Path]:
    """Up to so many paths near the parent that were not asked for yet."""
    generation, found = len(standing.generations), dict[str, Path]()
    for member in range(most):
        draw = random.Random(stream(seed, generation, member))
        for _ in range(100):
            child = moved(parent, limits, draw)
            name = key(spelled(child, limits.depth))
            if name not in standing.asked and name not in found:
                found[name] = child
                break
    return list(found.values())


def moved(path: Path, limits: Limits, draw: random.Random) -> Path:
    """One move, or with probability ½ each another one after it; what is not allowed is left out.

    - a stretch of layers gives way to the same layers of another model;
    - a stretch comes once more after itself, from any of the models;
    - the layers that follow on some place in a model come after it, from any of the models, so that
      what was left out can come back;
    - a layer is left out;
    - a layer's scale changes.
    """
    while True:
        child = draw.choice(MOVES[: None if limits.scaled else -1])(path, limits, draw)
        path = child if limits.allow(child) else path
        if draw.random() < 0.5:
            return path


def _stretch(path: Sequence[Place], limits: Limits, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(path))
    return start, min(len(path), start + _length(limits, draw))


def _length(limits: Limits, draw: random.Random) -> int:
    return draw.randint(1, max(1, math.floor(limits.depth * LONGEST_STRETCH)))


def _swapped(path: Path, limits: Limits, draw: random.Random) -> Path:
    start, stop = _stretch(path, limits, draw)
    model = draw.choice(limits.names)
    return (*path[:start], *(replace(p, model=model) for p in path[start:stop]), *path[stop:])


def _repeated(path: Path, limits: Limits, draw: random.Random) -> Path:
    start, stop = _stretch(path, limits, draw)
    model = draw.choice(limits.names)
    return (*path[:stop], *(replace(p, model=model) for p in path[start:stop]), *path[stop:])


def _inserted(path: Path, limits: Limits, draw: random.Random) -> Path:
    place = draw.randrange(len(path) + 1)
    first = path[place - 1].layer + 1 if place else 0
    model = draw.choice(limits.names)
    layers = range(first, min(limits.depth, first + _length(limits, draw)))
    return (*path[:place], *(Place(model, layer) for layer in layers), *path[place:])


def _shortened(path: Path, limits: Limits, draw: random.Random) -> Path:
    place = draw.randrange(len(path))
    return path[:place] + path[place + 1 :]


def _scaled(path: Path, limits: Limits, draw: random.Random) -> Path:
    place = draw.randrange(len(path))
    scale = path[place].scale * math.exp(draw.gauss(0, SCALE_STEP))
    scale = round(min(max(scale, SCALES[0]), SCALES[1]), 3)
    return (*path[:place], replace(path[place], scale=scale), *path[place + 1 :])


MOVES: tuple[Callable[[Path, Limits, random.Random], Path], ...] = (
    _swapped,
    _repeated,
    _inserted,
    _shortened,
    _scaled,
)
