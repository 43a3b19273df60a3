"""A task of lm-evaluation-harness: loaded, its prompts written, its items cut into two splits."""

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import lm_eval
from datasets.exceptions import DatasetsError
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from modelglue.errors import TaskError
from modelglue.evaluate.harness.task import HarnessConfig
from modelglue.evaluate.kinds import Item
from modelglue.evaluate.task import SplitName
from modelglue.registry import nearest

# The harness's own seed for drawing examples, so that prompts are the same as there.
_SHOTS_SEED = 1234
# Fields that tell two copies of a question apart without being part of it.
_NAMES = {"id", "idx", "ind", "index", "doc_id", "qid", "question_id", "guid", "uuid", "task_id"}
_UNSAFE = (
    "{name} runs model-written code outside any sandbox; for MBPP and HumanEval take suite: paper, "
    "else a task file of kind code"
)
# What the harness and the library under it let through.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    ImportError,
    TypeError,
    AttributeError,
    AssertionError,
    DatasetsError,
)


@dataclass(frozen=True)
class HarnessItem:
    """One item.

    Attributes:
        item: as the rest of the project sees it; items that ask the same are one group.
        task: the harness's task that it belongs to.
        requests: what the harness asks a model, in its order.
    """

    item: Item
    task: Task
    requests: tuple[Instance, ...]


def load(config: HarnessConfig) -> dict[SplitName, tuple[HarnessItem, ...]]:
    """Both splits of a task.

    Raises:
        TaskError: the harness has no such task, its data are not there, or it asks for what our
            models don't do.
    """
    if config.search_split is None:
        items = _items(config, None)
        search = [each for each in items if _place(each.item.group) < config.search_share]
        report = [each for each in items if _place(each.item.group) >= config.search_share]
    else:
        report = _items(config, config.report_split)
        standing = {each.item.group for each in report}
        search = _items(config, config.search_split)
        search = [each for each in search if each.item.group not in standing]
    wanted: dict[SplitName, bool] = {
        "search": config.search_share > 0,
        "report": config.search_share < 1,
    }
    splits: dict[SplitName, tuple[HarnessItem, ...]] = {
        "search": tuple(search),
        "report": tuple(report),
    }
    for split, items_wanted in wanted.items():
        if items_wanted and not splits[split]:
            raise TaskError(f"{config.harness} has no {split} items: none of what it asks is left")
    return splits


def digest(splits: Mapping[SplitName, Sequence[HarnessItem]], metric: str | None) -> str:
    """Changes with the requests, with what is right, with the metric, and with the harness."""
    content = [lm_eval.__version__, metric] + [
        [split, each.item.id, each.item.group, [repr(request.args) for request in each.requests]]
        for split, items in splits.items()
        for each in items
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _items(config: HarnessConfig, split: str | None) -> list[HarnessItem]:
    with _quietly():
        members = _members(config)
        items = []
        for task in members:
            found = _requests(task, config, split)
            _remember(task)
            where = f"{split}/" if split is not None else ""
            if len(members) > 1:
                where = f"{task.task_name}/{where}"
            items += [
                HarnessItem(
                    Item(f"{where}{number}", _asked(requests[0].doc), _shown(requests)),
                    task,
                    tuple(requests),
                )
                for number, requests in found.items()
            ]
    return items


def _members(config: HarnessConfig) -> list[Task]:
    """The tasks of this name: one, or a group's."""
    name, include = config.harness, None if config.include is None else str(config.include)
    if include is not None and not Path(include).is_dir():
        raise TaskError(f"include: {include} is no folder")
    # Looking through the harness's own thousands of definitions takes many seconds.
    own = _manager(include, defaults=False) if include is not None else None
    if own is not None and name in own.all_tasks:
        members = _loaded(own, name)
    else:
        manager = _manager(include, defaults=True)
        if name not in manager.all_tasks:
            raise TaskError(
                f"lm-evaluation-harness has no task {name!r}{nearest(name, manager.all_tasks)}"
                + ("" if include is None else f"; nor has {include}")
            )
        members = _loaded(manager, name)
    for task in members:
        _refuse(task, config)
    return members


@lru_cache(maxsize=8)
def _manager(include: str | None, *, defaults: bool) -> TaskManager:
    return TaskManager(include_path=include, include_defaults=defaults)


def _loaded(manager: TaskManager, name: str) -> list[Task]:
    entry = manager.task_index.get(name)
    definition: Mapping[str, Any] = (entry.cfg if entry is not None else None) or {}
    if definition.get("unsafe_code"):  # before its metric, which is code too, is fetched
        raise TaskError(_UNSAFE.format(name=name))
    try:
        return list(manager.load(name)["tasks"].values())
    except _LOADING_ERRORS as error:
        dataset = definition.get("dataset_path")
        files = (definition.get("dataset_kwargs") or {}).get("data_files")
        data = f" (dataset {dataset}{f', {files}' if files else ''})" if dataset else ""
        reason = " ".join(str(error).split())
        raise TaskError(
            f"{name} of lm-evaluation-harness cannot be loaded{data}: "
            f"{type(error).__name__}: {reason}. Without a network its data must have been fetched "
            "before"
        ) from error


def _refuse(task: Task, config: HarnessConfig) -> None:
    """Refuse what we cannot do as the harness would.

    Raises:
        TaskError: says what it is.
    """
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskError(_UNSAFE.format(name=name))
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"{name} asks about images or sound, which no model here takes")
    known = list(task.higher_is_better())
    if config.metric is not None and config.metric.partition(",")[0] not in known:
        raise TaskError(
            f"metric: {name} has no {config.metric!r}{nearest(config.metric, known)}. "
            f"Known: {', '.join(known)}"
        )
    if config.shots and task.get_config("num_fewshot") == 0:
        raise TaskError(f"shots: {name} is defined without examples and takes none")


def _requests(task: Task, config: HarnessConfig, split: str | None) -> dict[int, list[Instance]]:
    """What the harness asks about each of its documents, by their number."""
    if split is not None:
        there = list(getattr(task, "dataset", None) or {})
        if split not in there:
            raise TaskError(
                f"{task.task_name} has no split {split!r}{nearest(split, there)}. "
                f"Known: {', '.join(there)}"
            )
        task.set_config("test_split", split)
    if config.shots is not None:
        task.set_config("num_fewshot", config.shots)
    task.set_fewshot_seed(_SHOTS_SEED)
    try:
        task.build_all_requests(limit=config.limit)
    except _LOADING_ERRORS as error:
        raise TaskError(f"{task.task_name}: its prompts cannot be made: {error}") from error
    found: dict[int, list[Instance]] = {}
    for request in task.instances:
        found.setdefault(request.doc_id, []).append(request)
    for requests in found.values():
        requests.sort(key=lambda request: request.idx)
    return found


def _remember(task: Task) -> None:
    """Let the task read each document's text, choices and answer from its templates once only.

    They depend on no model, and compiling a template takes longer than all the rest of judging.
    """
    for name in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        if hasattr(task, name):
            setattr(task, name, _once(getattr(task, name)))


def _once(method: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[int, tuple[Any, Any]] = {}

    def remembered(document: Any, *more: Any, **settings: Any) -> Any:
        if more or settings:
            return method(document, *more, **settings)
        if id(document) not in known:
            # With the document, lest another one gets its place in memory.
            known[id(document)] = document, method(document)
        return copy(known[id(document)][1])

    return remembered


def _shown(requests: Sequence[Instance]) -> dict[str, Any]:
    return {"prompt": str(requests[0].args[0])}


def _asked(document: Any) -> str:
    """A digest of what a document says, whatever it is called."""
    if isinstance(document, Mapping):
        document = {k: v for k, v in document.items() if str(k).lower() not in _NAMES}
    content = json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _place(asked: str) -> float:
    """Evenly spread over [0, 1)."""
    return int(asked, 16) / (1 << 4 * len(asked))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the harness's progress bars and remarks: what matters to us is raised."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
