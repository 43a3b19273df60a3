"""A model's answers to requests of lm-evaluation-harness, judged item by item by the harness."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from modelglue.errors import EvaluationError, TaskError
from modelglue.evaluate.harness.items import HarnessItem
from modelglue.evaluate.harness.model import HarnessModel
from modelglue.evaluate.model import LanguageModel, Likelihood
from modelglue.evaluate.scores import TaskScores

_FIRST = ("acc_norm", "acc", "exact_match")
# An item's part in a perplexity is a log-likelihood (of so many words or bytes): more is better.
_LIKELIHOODS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")


def score(
    name: str, items: Sequence[HarnessItem], model: LanguageModel, *, metric: str | None
) -> TaskScores:
    """Score a model on items; see `harness.task` for what is the score.

    Raises:
        EvaluationError: the model gave no usable number, or the items share no metric.
    """
    found = _judged(items, model)
    shared = [key for key in found[0] if all(key in numbers for numbers in found)]
    main = _main(shared, metric)
    if main is None:
        which = "number that they all have" if metric is None else metric
        raise EvaluationError(f"task {name}: its items have no {which}; they share {shared}")
    signs = [_sign(each, main) for each in items]
    return TaskScores(
        task=name,
        items=tuple(each.item.id for each in items),
        values=tuple(sign * numbers[main] for sign, numbers in zip(signs, found, strict=True)),
        groups=tuple(each.item.group for each in items),
        metrics={key: tuple(numbers[key] for numbers in found) for key in shared},
    )


def require_numbers(items: Sequence[HarnessItem], metric: str | None) -> None:
    """Refuse tasks whose metric is no number of a single item, before a model is there.

    One item of each task is judged, with answers that know nothing.

    Raises:
        TaskError: says which numbers an item has; or what it asks that no model here does.
    """
    shared: list[str] | None = None
    for each in {id(each.task): each for each in items}.values():
        try:
            (found,) = _judged([each], _Blank())
        except EvaluationError as error:
            raise TaskError(str(error)) from error
        except Exception:  # noqa: BLE001 - a task's own code, which a blank answer may well upset
            continue
        shared = [key for key in (found if shared is None else shared) if key in found]
    if shared is None or _main(shared, metric) is not None:
        return
    name, known = items[0].task.task_name, ", ".join(items[0].task.higher_is_better())
    raise TaskError(
        f"metric: {metric or known} of {name} is no number of a single item, and a score is their "
        f"mean. Numbers of an item: {', '.join(shared) or 'none'}"
    )


class _Blank:
    """Answers whatever it is asked."""

    parameters_stored = parameters_active = 0

    def loglikelihoods(
        self, contexts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        return [[Likelihood(-1.0, 1, 1, False) for _ in texts] for texts in continuations]

    def text_likelihoods(self, texts: Sequence[str]) -> list[float]:
        return [-1.0 for _ in texts]

    def generate(self, prompts: Sequence[str], **_: Any) -> list[str]:
        return ["0" for _ in prompts]


def _judged(items: Sequence[HarnessItem], model: LanguageModel) -> list[dict[str, float]]:
    """Every number that the harness gives each item."""
    # Copies: the harness keeps answers in the requests, and these are asked again and again.
    asked = [[replace(r, resps=[], filtered_resps={}) for r in each.requests] for each in items]
    _answer([request for requests in asked for request in requests], model)
    by_task: dict[int, list[int]] = {}
    for index, each in enumerate(items):
        by_task.setdefault(id(each.task), []).append(index)
    for indices in by_task.values():
        task = items[indices[0]].task
        # A task filters the answers to the requests that it holds: for now, to these.
        task.instances[:] = [request for index in indices for request in asked[index]]
        task.apply_filters()
        task.instances.clear()
    return [_numbers(each, requests) for each, requests in zip(items, asked, strict=True)]


def _answer(requests: Sequence[Instance], model: LanguageModel) -> None:
    served = HarnessModel(model)
    by_sort: dict[str, list[Instance]] = {}
    for request in requests:
        by_sort.setdefault(request.request_type, []).extend([request] * (request.repeats or 1))
    for sort, copies in by_sort.items():
        for request, answer in zip(copies, getattr(served, sort)(copies), strict=True):
            request.resps.append(answer)


def _numbers(each: HarnessItem, requests: Sequence[Instance]) -> dict[str, float]:
    """Metric → number; with the name of the filter behind a comma, where the task has several."""
    found = {}
    filters = list(requests[0].filtered_resps)
    for name in filters:
        answers = [request.filtered_resps[name] for request in requests]
        judged: Mapping[str, Any] = each.task.process_results(requests[0].doc, answers)
        for metric, value in judged.items():
            if (number := _number(metric, value)) is not None:
                found[metric if name == "none" else f"{metric},{name}"] = number
    return found


def _number(metric: str, value: Any) -> float | None:
    """The item's own number; None for what means something only for all items together (F1)."""
    if isinstance(value, Real | np.bool_):
        return float(value)
    if metric in _LIKELIHOODS and isinstance(value, tuple):
        total, count = value
        return float(total / count)
    return None


def _main(names: Sequence[str], wanted: str | None) -> str | None:
    for choice in _FIRST if wanted is None else (wanted,):
        for name in names:
            if choice in (name, name.partition(",")[0]):
                return name
    return names[0] if names and wanted is None else None


def _sign(each: HarnessItem, main: str) -> int:
    metric = main.partition(",")[0]
    higher = metric in _LIKELIHOODS or each.task.higher_is_better().get(metric, True)
    return 1 if higher else -1
