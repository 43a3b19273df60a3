"""Several experts that answer together: a mixture of their distributions, token by token.

    p(xₜ | x₍<t₎) = Σₑ wₑ pₑ(xₜ | x₍<t₎)

with the weights of the prompt's route, which stay as they are while the answer is written. In
logarithms throughout: log p = logsumexp(log wₑ + log pₑ). The experts share a vocabulary, of which
rows that some of them has beyond the shortest embedding are padding and no token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from modelglue.checkpoint.tokenizer import same_vocabulary
from modelglue.evaluate.decoding import Batch, read
from modelglue.evaluate.encoding import Tokens
from modelglue.evaluate.generation import Sampling, end_tokens, generate
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.likelihood import LikelihoodScorer, likelihoods
from modelglue.evaluate.model import Likelihood


@dataclass(frozen=True)
class Shares:
    """Who answers a prompt, and with what weight.

    Args:
        experts: their places, rising.
        weights: of each; they sum to 1.
    """

    experts: tuple[int, ...]
    weights: tuple[float, ...]


def shares(probabilities: Sequence[float], top_k: int) -> Shares:
    """The `top_k` likeliest experts, their probabilities scaled to sum to 1; ties go to the first.

    >>> shares((0.5, 0.1, 0.3), 2)
    Shares(experts=(0, 2), weights=(0.625, 0.37499999999999994))
    """
    order = sorted(range(len(probabilities)), key=lambda expert: -probabilities[expert])
    chosen = tuple(sorted(order[:top_k]))
    whole = sum(probabilities[expert] for expert in chosen)
    return Shares(chosen, tuple(probabilities[expert] / whole for expert in chosen))


def vocabularies_differ(folders: Mapping[str, Path]) -> str | None:
    """Why experts cannot answer together, in words; None if they can.

    Args:
        folders: expert → its checkpoint.
    """
    for (one, first), (other, second) in combinations(folders.items(), 2):
        if (reason := same_vocabulary(first, second)) is not None:
            return (
                f"experts {one!r} and {other!r} have no common vocabulary, so their distributions "
                f"over tokens cannot be mixed: {reason}. Use top_k: 1"
            )
    return None


class Together:
    """Experts that answer prompts together; asked like one of them.

    Args:
        models: the experts.
        weights: for each prompt (or context) that will be asked, one weight an expert.
    """

    def __init__(
        self, models: Sequence[HuggingFaceModel], weights: Mapping[str, Sequence[float]]
    ) -> None:
        self._models = models
        self._weights = weights
        # Of the expert with the shortest context: what it takes, all can.
        self._encoder = min((m.encoder for m in models), key=lambda e: e.max_length)

    def loglikelihoods(
        self, contexts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        """See `LanguageModel.loglikelihoods`."""
        answers: list[list[Likelihood]] = [[] for _ in contexts]
        rows: dict[tuple[float, ...], list[int]] = {}
        for row, context in enumerate(contexts):
            rows.setdefault(tuple(self._weights[context]), []).append(row)
        for weights, chosen in rows.items():
            texts = [continuations[i] for i in chosen]
            items = self._encoder.continued([contexts[i] for i in chosen], texts)
            scorer = LikelihoodScorer(_Mixed(self._models, weights))
            found = scorer.score(items, batch_size=self._models[0].batch_size)
            for i, own, numbers in zip(chosen, texts, found, strict=True):
                answers[i] = likelihoods(own, numbers)
        return answers

    def text_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """See `LanguageModel.text_likelihoods`; with the weights of an empty prompt."""
        windows = [self._encoder.windows(text) for text in texts]
        scorer = LikelihoodScorer(_Mixed(self._models, self._weights[""]))
        return scorer.score_texts(windows, batch_size=self._models[0].batch_size)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """See `LanguageModel.generate`; temperature and nucleus are of the mixed distribution."""
        unique = list(dict.fromkeys(prompts))
        encoded = self._encoder.prompts(unique, max_new_tokens)
        longest = max((len(tokens) for tokens in encoded), default=0) + max_new_tokens
        answers = generate(
            _Mixed(self._models, ()),
            self._encoder,
            unique,
            encoded,
            max_new_tokens=max_new_tokens,
            stop=stop,
            sampling=Sampling(temperature, top_p, seed),
            rows=max(1, min(m.rows_at_once(longest) for m in self._models) // len(self._models)),
            reader=self._read,
        )
        written = dict(zip(unique, answers, strict=True))
        return [written[prompt] for prompt in prompts]

    def _read(self, tokens: Sequence[Tokens], texts: Sequence[str], room: int) -> Batch:
        batches = [read(model.module, tokens, room) for model in self._models]
        logs = _logs([self._weights[text] for text in texts])
        return _MixedBatch(batches, logs.to(self._models[0].module.device))


class _Mixed:
    """What scores and decodes, in the place of a module: the experts' logits, mixed.

    It takes no mask and no positions, so that texts reach it as plain rows: experts may differ in
    what they can take.
    """

    def __init__(self, models: Sequence[HuggingFaceModel], weights: Sequence[float]) -> None:
        self._modules = [model.module for model in models]
        self._logs = _logs(weights)
        first = self._modules[0]
        self.config, self.device, self.dtype = first.config, first.device, torch.float32
        ends = frozenset[int]().union(
            *(end_tokens(module, models[0].tokenizer) for module in self._modules)
        )
        self.generation_config = SimpleNamespace(eos_token_id=sorted(ends))

    def get_output_embeddings(self) -> None:
        """None: the experts have a head each."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        """Log-probabilities [rows, columns, vocabulary], as `logits`."""
        parts = [m(input_ids=input_ids, use_cache=use_cache).logits for m in self._modules]
        logs = self._logs.to(self.device)
        return SimpleNamespace(logits=_mixed([part.float() for part in parts], logs))

    __call__: Callable[..., Any] = forward


class _MixedBatch:
    """Rows that several experts read, each with its own cache.

    Args:
        batches: of each expert, the same rows.
        logs: [rows, experts], logarithms of the weights.
    """

    def __init__(self, batches: Sequence[Batch], logs: Tensor) -> None:
        self._batches, self._logs = batches, logs
        self.logits = _mixed([batch.logits for batch in batches], logs)

    def keep(self, rows: Tensor) -> None:
        self._logs = self._logs[rows]
        for batch in self._batches:
            batch.keep(rows)

    def advance(self, tokens: Tensor) -> None:
        for batch in self._batches:
            batch.advance(tokens)
        self.logits = _mixed([batch.logits for batch in self._batches], self._logs)


def _mixed(logits: Sequence[Tensor], logs: Tensor) -> Tensor:
    """log Σₑ wₑ pₑ.

    Args:
        logits: of each expert, [..., vocabulary].
        logs: the logarithms of the weights, [experts] or [rows, experts].
    """
    width = min(part.shape[-1] for part in logits)
    mixed: Tensor | None = None
    for expert, part in enumerate(logits):
        weighted = part[..., :width].log_softmax(dim=-1) + logs[..., expert, None]
        mixed = weighted if mixed is None else torch.logaddexp(mixed, weighted)
    assert mixed is not None
    return mixed


def _logs(weights: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(weights, dtype=torch.double).log().float()
