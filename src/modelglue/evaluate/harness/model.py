"""A model of ours as lm-evaluation-harness sees one."""

import json
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from modelglue.errors import EvaluationError
from modelglue.evaluate.model import LanguageModel

# The harness's default, and the names under which tasks give it.
_MOST_TOKENS = 256
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# What changes nothing in greedy decoding is ignored there.
_SAMPLING = {"until", "do_sample", "temperature", "top_p", *_LENGTHS}


class HarnessModel(LM):  # type: ignore[misc]  # the harness is untyped
    """Serves the harness's three sorts of requests; every context is read once."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self._model = model

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding gives."""
        by_context: dict[str, dict[str, tuple[float, bool]]] = {}
        for request in requests:
            context, continuation = request.args
            by_context.setdefault(context, {})[continuation] = (0.0, False)
        found = self._model.loglikelihoods(
            list(by_context), [list(continuations) for continuations in by_context.values()]
        )
        for continuations, likelihoods in zip(by_context.values(), found, strict=True):
            for continuation, likelihood in zip(list(continuations), likelihoods, strict=True):
                continuations[continuation] = (likelihood.total, likelihood.greedy)
        return [by_context[request.args[0]][request.args[1]] for request in requests]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-likelihood of whole texts, those longer than the model's context in pieces."""
        texts = list(dict.fromkeys(request.args[0] for request in requests))
        totals = dict(zip(texts, self._model.text_likelihoods(texts), strict=True))
        return [totals[request.args[0]] for request in requests]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """A completion of each prompt; the n-th copy of a request is drawn with the n-th seed."""
        batches: dict[tuple[str, int], list[int]] = {}
        copies: dict[int, int] = {}
        for index, request in enumerate(requests):
            seed = copies[id(request)] = copies.get(id(request), -1) + 1
            settings = json.dumps(_settings(request.args[1]), sort_keys=True)
            batches.setdefault((settings, seed), []).append(index)
        answers = [""] * len(requests)
        for (settings, seed), indices in batches.items():
            prompts = [requests[index].args[0] for index in indices]
            written = self._model.generate(prompts, **json.loads(settings), seed=seed)
            for index, text in zip(indices, written, strict=True):
                answers[index] = text
        return answers


def _settings(asked: dict[str, Any]) -> dict[str, Any]:
    """What a task asks of generation, as our models take it.

    Raises:
        EvaluationError: it asks to sample in a way that they don't know.
    """
    until = asked.get("until") or []
    lengths = [asked[name] for name in _LENGTHS if asked.get(name) is not None]
    settings = {
        "max_new_tokens": int(lengths[0]) if lengths else _MOST_TOKENS,
        "stop": [until] if isinstance(until, str) else [text for text in until if text],
    }
    temperature = asked.get("temperature")
    # As the harness does: a temperature says enough, unless sampling is forbidden.
    samples = asked["do_sample"] if asked.get("do_sample") is not None else bool(temperature)
    if not samples:
        return settings
    if unknown := sorted(set(asked) - _SAMPLING):
        raise EvaluationError(
            f"the task samples with {', '.join(unknown)}, which is not known here"
        )
    return settings | {
        "temperature": 1.0 if temperature is None else float(temperature),
        "top_p": float(asked.get("top_p", 1.0)),
    }
