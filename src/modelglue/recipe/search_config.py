"""What a recipe says about its search: strategies with their options, and what accepts a merge.

search: {strategy: evolution, trials: 60}

search:
  strategies: [heuristic_average, {strategy: evolution, warm_start: heuristic_average}]
  validation: 0.5
  level: 0.05
  workers: 2
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelglue.registry import nearest
from modelglue.search.problem import STRATEGIES, Option, options_of

ELSEWHERE = ("executor", "workers", "gpus_per_worker", "address", "storage")
"""Settings that say who works and where, never what comes of it: a run may go on with others."""

USES: Mapping[str, tuple[str, ...]] = {
    "serial": (),
    "workers": ("workers",),
    "ray": ("workers", "gpus_per_worker", "address"),
}
"""The executors, and the settings that each makes use of."""

DEFAULT = ("heuristic_average", "heuristic_coefficient", "heuristic_similarity")


@dataclass(frozen=True)
class StrategyConfig:
    """A strategy to run.

    Attributes:
        name: what its result is called; by default the strategy's name.
        options: all that it takes, defaults filled in.
    """

    strategy: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """The same as a YAML mapping."""
        return {"strategy": self.strategy, "name": self.name, **self.options}


@dataclass(frozen=True)
class SearchConfig:
    """How models and coefficients are chosen.

    Attributes:
        strategies: run in this order in each family; the best on the proposing items wins.
        validation: the share of the search items that accepts or refuses what was found, and that
            no strategy sees; 0 for none, and every gain is then believed.
        level: of the paired test that accepts.
        blocks: into how many blocks the proposing items are cut, for strategies that race; each
            but the first is as large as all before it.
        seed: of everything that is drawn.
        executor: who evaluates: this process, `workers` processes, or a Ray cluster.
        workers: how many candidates are evaluated side by side.
        gpus_per_worker: of a Ray worker; a fraction lets several share one. Above 1, a whole
            number: each model is spread over so many, by this process as well.
        address: of the Ray cluster; by default the one that this machine is part of, or its own.
        storage: a database URL for Optuna, in place of the journal file in the run directory.
    """

    strategies: tuple[StrategyConfig, ...] = tuple(StrategyConfig(name, name) for name in DEFAULT)
    validation: float = 0.5
    level: float = 0.05
    blocks: int = 3
    seed: int = 0
    executor: str = "serial"
    workers: int = 1
    gpus_per_worker: float = 0.0
    address: str | None = None
    storage: str | None = None

    @property
    def gpus_per_model(self) -> int:
        """Over how many GPUs a model is spread."""
        return max(1, int(self.gpus_per_worker))

    @property
    def names(self) -> tuple[str, ...]:
        """What the strategies' results are called."""
        return tuple(one.name for one in self.strategies)

    def to_mapping(self) -> dict[str, Any]:
        """The same as a YAML mapping."""
        return {
            "strategies": [one.to_mapping() for one in self.strategies],
            **{name: getattr(self, name) for name in _SETTINGS},
        }


_SETTINGS: dict[str, Option] = {
    "validation": Option("number", 0.5, "", low=0.0, high=0.9),
    "level": Option("number", 0.05, "", low=1e-4, below=0.5),
    "blocks": Option("integer", 3, "", low=1, high=100),
    "seed": Option("integer", 0, "", low=0),
    "executor": Option("choice", "serial", "", choices=tuple(USES)),
    "workers": Option("integer", 1, "", low=1, high=4096),
    "gpus_per_worker": Option("number", 0.0, "", low=0.0),
    "address": Option("text", None, ""),
    "storage": Option("url", None, ""),
}


def parse_search(value: object, problems: list[str]) -> SearchConfig:
    """The `search` section of a recipe.

    Args:
        value: as YAML gives it; None for the default.
        problems: what is wrong is added here.
    """
    if value is None:
        return SearchConfig()
    if not isinstance(value, Mapping):
        problems.append("search: must be a mapping with strategy or strategies")
        return SearchConfig()
    if "strategy" in value and "strategies" in value:
        problems.append("search: strategy and strategies are both given; keep one")
        return SearchConfig()
    # Of a single strategy the options may stand beside its name.
    alone = {key: given for key, given in value.items() if key not in _SETTINGS}
    if "strategy" in value:
        strategies = _strategies([alone], ["search"], problems)
    else:
        known = ["strategy", "strategies", *_SETTINGS]
        problems += [
            f"search.{key}: unknown key{nearest(str(key), known)}"
            for key in alone
            if key != "strategies"
        ]
        given = value.get("strategies", list(DEFAULT))
        if not isinstance(given, list) or not given:
            problems.append(f"search.strategies: must be a list of {', '.join(STRATEGIES)}")
            return SearchConfig()
        places = [f"search.strategies[{i}]" for i in range(len(given))]
        strategies = _strategies(given, places, problems)
    settings = {name: value[name] for name in _SETTINGS if value.get(name) is not None}
    wrong = {name: _problem(_SETTINGS[name], setting) for name, setting in settings.items()}
    problems += [f"search.{name}: {problem}" for name, problem in wrong.items() if problem]
    gpus = settings.get("gpus_per_worker", 0.0)
    if not wrong.get("gpus_per_worker") and gpus > 1 and gpus % 1:
        problems.append(
            "search.gpus_per_worker: must be a share of one GPU or a whole number of them, not "
            f"{gpus!r}"
        )
    if settings.get("workers", 1) != 1 and "executor" not in settings:
        settings["executor"] = "workers"
    problems += _useless(settings)
    return SearchConfig(strategies, **settings)


def with_executor(value: object, *, executor: str | None, workers: int | None) -> object:
    """A `search` section with another executor; what that one has no use for is left out.

    >>> with_executor({"seed": 1, "workers": 4, "executor": "ray"}, executor="serial", workers=None)
    {'seed': 1, 'executor': 'serial'}
    """
    section = {} if value is None else value
    if not isinstance(section, Mapping) or (executor is None and workers is None):
        return value
    dropped = {"executor"} if executor or section.get("executor") == "serial" else set()
    if executor is not None and executor in USES:
        dropped |= {*USES["ray"]} - {*USES[executor]}
    own = {"executor": executor, "workers": workers}
    kept = {key: setting for key, setting in section.items() if key not in dropped}
    return kept | {key: setting for key, setting in own.items() if setting is not None}


def device_problems(search: SearchConfig, device: str) -> list[str]:
    """What does not go together with the device that the models run on."""
    if search.executor == "ray" and re.fullmatch(r"\w+:[1-9]\d*", device):
        return [
            f"device: {device!r} is none that Ray's workers see: each is shown its own GPU alone; "
            f"say {device.partition(':')[0]}"
        ]
    if search.gpus_per_worker and device == "cpu":
        return [
            "search.gpus_per_worker: models run on the cpu, so GPUs would idle; set device: cuda"
        ]
    if search.gpus_per_model > 1 and device != "cuda":
        return [
            f"search.gpus_per_worker: each model is spread over {search.gpus_per_model} GPUs, and "
            f"device: {device!r} names one; set device: cuda"
        ]
    return []


def _useless(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings that the executor would pass over in silence."""
    executor = settings.get("executor", "serial")
    for name in USES["ray"] if executor in tuple(USES) else ():
        if name in USES[executor] or settings.get(name) in (None, _SETTINGS[name].default):
            continue
        users = [other for other, uses in USES.items() if name in uses]
        yield (
            f"search.{name}: executor: {executor} has no use for it; "
            f"set executor: {' or '.join(users)}, or leave {name} out"
        )


def _strategies(
    given: list[Any], places: list[str], problems: list[str]
) -> tuple[StrategyConfig, ...]:
    found: list[StrategyConfig] = []
    for entry, where in zip(given, places, strict=True):
        mapping = {"strategy": entry} if isinstance(entry, str) else entry
        if not isinstance(mapping, Mapping) or "strategy" not in mapping:
            problems.append(f"{where}: must be the name of a strategy, or a mapping with strategy")
            continue
        strategy = mapping["strategy"]
        if not isinstance(strategy, str) or strategy not in STRATEGIES:
            close = nearest(str(strategy), STRATEGIES)
            problems.append(
                f"{where}: there is no {strategy!r}{close} Known: {', '.join(STRATEGIES)}"
            )
            continue
        found.append(_strategy(strategy, mapping, where, found, problems))
    for name, times in Counter(one.name for one in found).items():
        if times > 1:
            problems.append(
                f"search: {times} strategies are called {name!r}; give them a name each"
            )
    return tuple(found)


def _strategy(
    strategy: str,
    mapping: Mapping[str, Any],
    where: str,
    earlier: Sequence[StrategyConfig],
    problems: list[str],
) -> StrategyConfig:
    known = options_of(strategy)
    name = mapping.get("name", strategy)
    if not isinstance(name, str) or not name:
        problems.append(f"{where}.name: must be text")
        name = strategy
    options = {key: option.default for key, option in known.items()}
    for key, value in mapping.items():
        if key in ("strategy", "name") or (value is None and key in known):
            continue
        if isinstance(value, bool):  # on and off, as YAML reads them
            value = "on" if value else "off"
        if key not in known:
            close = nearest(str(key), [*known, *_SETTINGS])
            problems.append(f"{where}.{key}: {strategy} has no such option{close}")
        elif known[key].sort == "strategy":
            problems += [f"{where}.{key}: {p}" for p in _start_problems(strategy, value, earlier)]
            options[key] = value
        elif problem := _problem(known[key], value):
            problems.append(f"{where}.{key}: {problem}")
        else:
            options[key] = value
    return StrategyConfig(strategy, name, options)


def _start_problems(strategy: str, value: object, earlier: Sequence[StrategyConfig]) -> list[str]:
    """What is wrong with the strategy whose result another is to start from."""
    standing = {one.name: one.strategy for one in earlier}
    names = {name: name for name in STRATEGIES} | standing
    if not isinstance(value, str) or value not in names:
        close = nearest(str(value), names)
        return [f"must be a strategy, or the name of one that stands before, not {value!r}{close}"]
    if names[value] == "data_flow":
        return ["data_flow finds an order of layers, which is no start for weights"]
    if value == strategy and value not in standing:
        return [f"{strategy} would start from itself; name another strategy, or one before it"]
    return []


def _problem(option: Option, value: object) -> str | None:
    """What is wrong with a value, as the end of a sentence; None if nothing is."""
    least = [] if option.low is None else [f"at least {option.low:g}"]
    most = [] if option.high is None else [f"at most {option.high:g}"]
    most += [] if option.below is None else [f"below {option.below:g}"]
    bounds = " and ".join(least + most)
    of = f" of {bounds}" if bounds else ""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = number and (
        (option.low is None or value >= option.low)  # type: ignore[operator]
        and (option.high is None or value <= option.high)  # type: ignore[operator]
        and (option.below is None or value < option.below)  # type: ignore[operator]
    )
    fits, expected = {
        "integer": (inside and isinstance(value, int), f"a whole number{of}"),
        "number": (inside, f"a number{of}"),
        "choice": (value in option.choices, "one of " + ", ".join(option.choices)),
        "text": (isinstance(value, str) and value != "", "text"),
        "url": (
            isinstance(value, str) and "://" in value,
            "the URL of a database, such as sqlite:///studies.db",
        ),
    }[option.sort]
    return None if fits else f"must be {expected}, not {value!r}"
