"""A harness task's documents: the same ones known again, and examples kept apart from items."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task

from modelglue.errors import TaskError

# Fields that tell two copies of a question apart without being part of it.
_NAMES = {"id", "idx", "ind", "index", "doc_id", "qid", "question_id", "guid", "uuid", "task_id"}


def asked(document: Any) -> str:
    """A digest of what a document says, whatever it is called."""
    if isinstance(document, Mapping):
        document = {k: v for k, v in document.items() if str(k).lower() not in _NAMES}
    content = json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def keep_apart(tasks: Sequence[Task], limit: int | None) -> None:
    """Take the items of all these tasks out of what they draw their examples from.

    The harness takes examples from the split that is asked where a task names no other, and an
    answer that stands before its own question, or one of the report's before the search's, is
    known. Where nothing is shared, examples are those that the harness draws.

    Args:
        limit: items of each task at most, the first ones.

    Raises:
        TaskError: too few examples are left.
    """
    drawing = [task for task in tasks if (task.get_config("num_fewshot") or 0) > 0]
    if not drawing:
        return
    items = {asked(document) for task in tasks for _, document in task.doc_iterator(limit=limit)}
    for task in drawing:
        shots, sampler = task.get_config("num_fewshot"), getattr(task, "sampler", None)
        pool = list((task if sampler is None else sampler).fewshot_docs())
        kept = [document for document in pool if asked(document) not in items]
        if len(kept) == len(pool):
            continue
        if sampler is None or len(kept) < shots:
            raise TaskError(
                f"{task.task_name}: of the {len(pool)} examples that it draws from, "
                f"{len(pool) - len(kept)} are items to be scored; the others are too few for "
                f"{shots} shots. Give shots: 0, a limit, or a search_split and a report_split that "
                "it draws no examples from"
            )
        sampler.replace_df(kept)
