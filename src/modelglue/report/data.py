"""What a report says, as plain data: report.json is exactly a `RunReport`.

The recipe fills these in; the page, the Markdown and the terminal only read them. So a finished
run can be shown again from report.json alone, without a model or a task file at hand.
"""

import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Self

from modelglue.errors import InputError

Fate = Literal["merged", "expert", "dropped", "baseline"]
RowKind = Literal["single", "uniform", "heuristic", "mixture", "glued", "oracle"]


@dataclass(frozen=True)
class ModelFate:
    """One model of the zoo and what became of it.

    `family` counts from 0 into `SimilarityMap.families`; `search` holds its mean score of each
    task on the search items.
    """

    name: str
    path: str
    architecture: str
    parameters: int
    family: int | None
    fate: Fate
    reason: str
    search: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PairReason:
    """Why two models are not in one family."""

    a: str
    b: str
    reason: str


@dataclass(frozen=True)
class SimilarityMap:
    """Cosine similarity of all pairs; None where two models cannot be compared.

    `matrix` is [n, n] in the order of `names`. A NaN given at construction becomes None, which is
    what JSON can hold.
    """

    names: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    threshold: float
    families: tuple[tuple[str, ...], ...]
    reasons: tuple[PairReason, ...] = ()

    def __post_init__(self) -> None:
        matrix = tuple(tuple(_finite(cell) for cell in row) for row in self.matrix)
        object.__setattr__(self, "matrix", matrix)


@dataclass(frozen=True)
class SearchStep:
    """One candidate that a search tried.

    `score` is the best that was reached with it, `incumbent` the score to beat before it.
    """

    candidate: str
    coefficient: float | None
    score: float
    incumbent: float
    accepted: bool
    reason: str = ""


@dataclass(frozen=True)
class SearchGeneration:
    """One generation of an evolution.

    `best` is its best mean, estimated where a race stopped a candidate early; `incumbent` the best
    mean so far of a candidate that was scored on all items; `spread` the step size, 0 for a search
    that has none; `stopped` and `failed` count candidates; `items` item evaluations.
    """

    number: int
    best: float
    incumbent: float
    spread: float
    candidates: int
    stopped: int = 0
    failed: int = 0
    items: int = 0


@dataclass(frozen=True)
class SearchPath:
    """One strategy's way through one family, scored on the items that propose.

    `score` is the best of all its `trials` on these items, `low` and `high` the ends of the 95 %
    interval of that one candidate's mean, which know nothing of the others. `coefficients` may have
    other knobs than weights by model (see `search.knobs`); models stand there in the order in which
    they are merged. `steps` are of strategies that go model by model, `generations` of those that
    evolve.
    """

    family: int
    strategy: str
    winner: bool
    score: float
    trials: int
    coefficients: Mapping[str, float]
    steps: tuple[SearchStep, ...] = ()
    generations: tuple[SearchGeneration, ...] = ()
    items: int = 0
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A value that `json` can write, as it stands in a report's."""
        return dict(_encode(self))


@dataclass(frozen=True)
class RivalComparison:
    """What the accepting test found against one rival: p of "no better than it"."""

    rival: str
    difference: "Difference"
    p: float


@dataclass(frozen=True)
class AcceptanceTest:
    """Whether the best of a family's searches was accepted on items that no search had seen.

    `candidate` is the strategy that found it, `purpose` the tasks that it was for, `level` that of
    the test, shared by `looks` tests on these items, `tried` how many candidates were looked at
    before, `text` all of it in words.
    """

    family: int
    candidate: str
    purpose: tuple[str, ...]
    accepted: bool
    level: float
    looks: int
    tried: int
    comparisons: tuple[RivalComparison, ...]
    text: str


@dataclass(frozen=True)
class RoutingTable:
    """How many report items of each task went to each expert: counts [tasks, experts]."""

    experts: tuple[str, ...]
    tasks: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TaskInfo:
    """A task and the sizes of its disjoint splits; of the search items some only accept."""

    name: str
    kind: str
    search_items: int
    report_items: int
    validation_items: int = 0


@dataclass(frozen=True)
class Difference:
    """A paired difference with its interval, as fractions (0.05 is five points)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class TableRow:
    """One contestant of the final table, scored on the report items.

    `difference` is against the best single model and None for that model itself; `stored` and
    `active` count parameters.
    """

    name: str
    kind: RowKind
    scores: Mapping[str, float]
    average: float
    difference: Difference | None
    stored: int
    active: int
    note: str = ""


@dataclass(frozen=True)
class InputInfo:
    """A checkpoint that went in and the digest of its content."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class RunReport:
    """Everything that a person or a script may want to know of a finished run."""

    title: str
    modelglue: str
    seconds: float | None
    models: tuple[ModelFate, ...]
    similarity: SimilarityMap
    searches: tuple[SearchPath, ...]
    routing: RoutingTable | None
    tasks: tuple[TaskInfo, ...]
    table: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    inputs: tuple[InputInfo, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    merge: str = "linear"
    acceptance: tuple[AcceptanceTest, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A value that `json` can write; what is not finite becomes null, what is not text �."""
        encoded: dict[str, Any] = _encode(self)
        return encoded

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` gave.

        Raises:
            InputError: a field is missing or of another type; the message names its place.
        """
        report: Self = _decode(cls, value, "report")
        return report


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {_encode(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, str):  # a folder's name need not be Unicode, a JSON file must be
        return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", value)
    return _finite(value) if isinstance(value, float) else value


def _decode(kind: Any, value: Any, place: str) -> Any:
    """`value` as the type `kind`, which is one of those that the classes above use."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return _decode_fields(kind, value, place)
    if origin is types.UnionType:  # X | None
        return None if value is None else _decode(arguments[0], value, place)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_decode(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping):
        return {k: _decode(arguments[1], item, f"{place}.{k}") for k, item in value.items()}
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if kind is float and value is None:
        return math.nan  # `to_json` wrote null for it
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (str, bool, int) and type(value) is kind:
        return value
    wanted = " or ".join(arguments) if origin is Literal else getattr(kind, "__name__", str(kind))
    raise InputError(f"{place}: expected {wanted}, found {value!r:.60}")


def _decode_fields(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{place}: expected an object, found {value!r:.60}")
    hints = typing.get_type_hints(kind)
    given = {}
    for f in fields(kind):
        # Fields with a default may be left out; keys that are not known are of a later version.
        if f.name in value:
            given[f.name] = _decode(hints[f.name], value[f.name], f"{place}.{f.name}")
        elif f.name in _required(kind):
            raise InputError(f"{place}: {f.name} is missing")
    return kind(**given)


def _required(kind: Any) -> frozenset[str]:
    return frozenset(
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING
    )
