"""What a task asks of a model, whatever stands behind it: a checkpoint or a mixture of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a continuation after a context.

    Attributes:
        total: Σ log p over the continuation's tokens, natural logarithm.
        tokens: how many tokens the continuation has.
        bytes: how many UTF-8 bytes, the measure that does not depend on a tokenizer.
        greedy: every token is the most likely one at its place.
    """

    total: float
    tokens: int
    bytes: int
    greedy: bool


@runtime_checkable
class LanguageModel(Protocol):
    """Text in, likelihoods or text out."""

    @property
    def parameters_stored(self) -> int:
        """Parameters that must be kept in memory."""
        ...

    @property
    def parameters_active(self) -> int:
        """Parameters that take part in one prompt's answer."""
        ...

    def loglikelihoods(
        self, contexts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        """The likelihood of each of `continuations[i]` after `contexts[i]`.

        Raises:
            EvaluationError: the model gave NaN, or a continuation adds no token or does not fit
                into the model's context.
        """
        ...

    def text_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each whole text, however long: Σ log p of its tokens.

        Raises:
            EvaluationError: the model gave NaN.
        """
        ...

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
        """Complete each prompt; what is returned does not repeat it, and ends before any `stop`.

        Greedy at temperature 0; else sampled, with random numbers that follow from (seed, prompt)
        alone, so that neither the batch nor the order changes an answer.

        Raises:
            EvaluationError: the model gave NaN.
        """
        ...
