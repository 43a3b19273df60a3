"""What a harness task asks and how it judges, as a digest."""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import lm_eval
from lm_eval.api.task import Task

from modelglue.evaluate.harness.items import HarnessItem
from modelglue.evaluate.task import SplitName

# Where data and definition come from: the items and the rest say what they are.
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata")


def digest(splits: Mapping[SplitName, Sequence[HarnessItem]], metric: str | None) -> str:
    """Changes with the requests, with how answers are judged, with the metric and the harness."""
    tasks = {id(each.task): each.task for items in splits.values() for each in items}
    content = [lm_eval.__version__, metric, *map(_definition, tasks.values())] + [
        [split, each.item.id, each.item.group, [repr(request.args) for request in each.requests]]
        for split, items in splits.items()
        for each in items
    ]
    return hashlib.sha256(json.dumps(content, default=_source).encode()).hexdigest()


def _definition(task: Task) -> list[Any]:
    """Its configuration (target, filters, metrics, what judges) and the class that reads it."""
    given = task.config.to_dict(keep_callable=True)
    return [_source(type(task)), {k: v for k, v in given.items() if k not in _PLACES}]


def _source(value: Any) -> str:
    """A function as it is written; of anything else what it shows, without its place in memory."""
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
