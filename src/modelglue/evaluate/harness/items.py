"""A task of lm-evaluation-harness: loaded, its prompts written, its items cut into two splits."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from modelglue.errors import TaskError
from modelglue.evaluate.harness.documents import asked, keep_apart
from modelglue.evaluate.harness.task import HarnessConfig
from modelglue.evaluate.kinds import Item
from modelglue.evaluate.task import SplitName
from modelglue.registry import nearest

# The harness's own seed for drawing examples, so that prompts are the same as there.
_SHOTS_SEED = 1234
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
        (items,) = _parts(config, None)
        search = [each for each in items if _place(each.item.group) < config.search_share]
        report = [each for each in items if _place(each.item.group) >= config.search_share]
    else:
        report, search = _parts(config, config.report_split, config.search_split)
        standing = {each.item.group for each in report}
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


def question(each: HarnessItem) -> str:
    """What an item asks, as our own kinds put it: its text without examples, the right answer.

    Raises:
        TaskError: the task's templates don't give them.
    """
    task, document = each.task, each.requests[0].doc
    try:
        text = task.doc_to_text(document)
        if each.requests[0].request_type == "generate_until":
            return str(text)
        target = task.doc_to_target(document)
        has_choices = task.get_config("doc_to_choice") is not None
        choices = task.doc_to_choice(document) if has_choices else []
    except _LOADING_ERRORS as error:
        raise _unwritten(task, error) from error
    if has_choices and isinstance(text, int):  # the choices are beginnings, the target their end
        return "\0".join(map(str, [*choices, target]))
    if isinstance(target, int) and 0 <= target < len(choices):
        target = choices[target]
    return f"{text}\0{target}"


def _parts(config: HarnessConfig, *splits: str | None) -> list[list[HarnessItem]]:
    """The items of the dataset's splits of these names; None is the one that the task names."""
    with _quietly():
        members = [_members(config, split) for split in splits]
        keep_apart([task for tasks in members for task in tasks], config.limit)
        return [_items(config, *each) for each in zip(members, splits, strict=True)]


def _items(config: HarnessConfig, members: Sequence[Task], split: str | None) -> list[HarnessItem]:
    items = []
    for task in members:
        found = _requests(task, config)
        _remember(task)
        where = f"{split}/" if split is not None else ""
        if len(members) > 1:
            where = f"{task.task_name}/{where}"
        items += [
            HarnessItem(
                Item(f"{where}{number}", asked(requests[0].doc), _shown(requests)),
                task,
                tuple(requests),
            )
            for number, requests in found.items()
        ]
    return items


def _members(config: HarnessConfig, split: str | None) -> list[Task]:
    """The tasks of this name, one or a group's, set up to ask what is in a split."""
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
        _set_up(task, config, split)
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


def _set_up(task: Task, config: HarnessConfig, split: str | None) -> None:
    """Let it ask what is in a split, with as many examples as are wanted."""
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


def _requests(task: Task, config: HarnessConfig) -> dict[int, list[Instance]]:
    """What the harness asks about each of its documents, by their number."""
    try:
        task.build_all_requests(limit=config.limit)
    except _LOADING_ERRORS as error:
        raise _unwritten(task, error) from error
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


def _unwritten(task: Task, error: Exception) -> TaskError:
    return TaskError(f"{task.task_name}: its prompts cannot be made: {error}")


def _place(asked: str) -> float:
    """Evenly spread over [0, 1)."""
    return int(asked, 16) / (1 << 4 * len(asked))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the harness's progress bars and remarks: what matters to us is raised."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
