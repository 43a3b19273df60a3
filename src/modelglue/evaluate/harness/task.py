"""Tasks of lm-evaluation-harness, by name: its items, prompts and metrics, our models' answers.

    tasks:
      - harness:arc_challenge
      - {harness: my_task, name: mine, include: tasks, shots: 5}

A group (`mmlu`) is one task with the items of all its members. The score of an item is one of the
harness's metrics: `metric` where it is given, else acc_norm, acc or exact_match, whichever the task
has first, else the first that it has; with its sign turned where less is better. The others stand
beside it. A perplexity counts as the log-likelihood that it is made of, for a token, word or byte.

The items of the task's evaluation split are cut in two by a hash of what is asked; or
`search_split` and `report_split` name two of the dataset's own splits, and what stands in both is
left out of the search. Examples are those that the harness draws, but never an item of a split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelglue.errors import TaskError
from modelglue.evaluate.kinds import Item
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.sandbox import Sandbox
from modelglue.evaluate.scores import TaskScores
from modelglue.evaluate.task import SplitName
from modelglue.registry import nearest

if TYPE_CHECKING:
    from modelglue.evaluate.harness.items import HarnessItem

PREFIX = "harness:"


@dataclass(frozen=True)
class HarnessConfig:
    """One task of the harness, or one of its groups.

    Attributes:
        harness: what the harness calls it.
        include: a folder with task definitions of the user's.
        shots: examples before each item; None as the task is defined.
        limit: items at most, of each member, the first ones.
        metric: what counts as the score, such as `acc` or `exact_match,flexible-extract`.
        search_share: of the items, for the search; the rest for the report.
        search_split, report_split: of the dataset, both or neither.
    """

    name: str
    harness: str
    include: Path | None = None
    shots: int | None = None
    limit: int | None = None
    metric: str | None = None
    search_share: float = 0.5
    search_split: str | None = None
    report_split: str | None = None

    def to_mapping(self) -> dict[str, Any]:
        """See `TaskConfig.to_mapping`."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return given | ({"include": str(self.include)} if self.include else {})

    def open(self) -> "HarnessTask":
        """See `TaskConfig.open`."""
        return HarnessTask(self)


_TEXTS = ("harness", "name", "include", "metric", "search_split", "report_split")
_COUNTS = {"shots": 0, "limit": 1}
_KEYS = (*_TEXTS, *_COUNTS, "search_share")


def parse_harness(
    mapping: Mapping[str, Any],
    path: str,
    *,
    root: Path,
    splits: Sequence[SplitName],
    problems: list[str],
) -> HarnessConfig | None:
    """The task that a mapping with `harness` names; what is wrong is added to `problems`.

    Args:
        path: where the mapping stands in the configuration.
        root: what `include` is relative to.
        splits: those that the task must have.
    """
    found = [
        f"{path}.{key}: no harness task knows this key{nearest(str(key), _KEYS)}"
        for key in mapping
        if key not in _KEYS
    ]
    given = {key: value for key, value in mapping.items() if value is not None and key in _KEYS}
    for key in _TEXTS:
        value = given.get(key, "given")
        if not isinstance(value, str | Path) or not str(value).strip():
            found.append(f"{path}.{key}: must be text, not {value!r}")
    for key, least in _COUNTS.items():
        value = given.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            found.append(f"{path}.{key}: must be a whole number of at least {least}, not {value!r}")
    if ("search_split" in given) != ("report_split" in given):
        found.append(f"{path}: search_split and report_split are given together or not at all")
    elif "search_split" in given and given["search_split"] == given["report_split"]:
        found.append(f"{path}.report_split: is the search split")
    if problem := _share_problem(given.get("search_share", 0.5), splits):
        found.append(f"{path}.search_share: {problem}")
    problems += found
    if found:
        return None
    if "include" in given:
        given["include"] = root / given["include"]
    return HarnessConfig(**{"name": given["harness"], **given})


def _share_problem(value: Any, splits: Sequence[SplitName]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return f"must be a number from 0 to 1, not {value!r}"
    if "search" in splits and value == 0:
        return "0 leaves the search no items"
    if "report" in splits and value == 1:
        return "1 leaves the report no items"
    return None


class HarnessTask:
    """A task of the harness, which is loaded when it is first needed; a `Task`."""

    runs_code = False  # what runs code in the harness runs it unprotected, and is refused

    def __init__(self, config: HarnessConfig) -> None:
        self.config = config
        self._splits: Mapping[SplitName, tuple[HarnessItem, ...]] | None = None
        self._by_id: Mapping[str, HarnessItem] | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.config.name

    @property
    def kind(self) -> str:
        """The harness, and what it calls the task."""
        return PREFIX + self.config.harness

    def check(self) -> None:
        """See `Task.check`: loads the task and its data.

        Raises:
            TaskError: the harness is not installed, has no such task, or cannot find its data.
        """
        self._loaded()

    def items(self, split: SplitName) -> tuple[Item, ...]:
        """See `Task.items`: in the order of the dataset; members of a group one after another."""
        return tuple(each.item for each in self._split(split))

    def evaluate(
        self,
        model: LanguageModel,
        split: SplitName,
        *,
        sandbox: Sandbox | None = None,
        part: Sequence[int] | None = None,
    ) -> TaskScores:
        """See `Task.evaluate`."""
        from modelglue.evaluate.harness.scores import score

        items = self._split(split)
        return score(
            self.name,
            items if part is None else [items[index] for index in part],
            model,
            metric=self.config.metric,
        )

    def digest(self) -> str:
        """A digest of the requests, of how answers are judged, and the harness's version."""
        from modelglue.evaluate.harness.digest import digest

        return digest(self._loaded(), self.config.metric)

    def question(self, item: Item) -> str:
        """See `Task.question`."""
        from modelglue.evaluate.harness.items import question

        if self._by_id is None:
            every = (each for items in self._loaded().values() for each in items)
            self._by_id = {each.item.id: each for each in every}
        return question(self._by_id[item.id])

    def _split(self, split: SplitName) -> tuple["HarnessItem", ...]:
        if not (items := self._loaded()[split]):
            raise TaskError(f"task {self.name} has no {split} items")
        return items

    def _loaded(self) -> Mapping[SplitName, tuple["HarnessItem", ...]]:
        if self._splits is None:
            try:
                from modelglue.evaluate.harness.items import load
                from modelglue.evaluate.harness.scores import require_numbers
            except ImportError as error:
                raise TaskError(
                    f"task {self.name} is one of lm-evaluation-harness, which is not installed "
                    f"({error}): pip install 'modelglue[harness]'"
                ) from error
            try:
                splits = load(self.config)
                require_numbers([*splits["search"], *splits["report"]], self.config.metric)
            except TaskError as error:
                raise TaskError(f"task {self.name}: {error}") from error
            self._splits = splits
        return self._splits
