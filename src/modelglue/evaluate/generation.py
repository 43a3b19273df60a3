"""Completions for many prompts at once; batching changes no answer, and who is done leaves.

A batch is decoded a token a step. When enough of its rows have ended (an end-of-sequence token, a
stop text, the limit), the rest are moved together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelglue.errors import NonFiniteOutput
from modelglue.evaluate.decoding import Batch, batches, read
from modelglue.evaluate.encoding import Encoder, Tokens, before_stop
from modelglue.evaluate.kvcache import closed_up

# Rows are moved together when no more than this share of them is still at work.
_SHARE_AT_WORK = 0.8
# Tokens that are decoded beside those that a stop can consist of.
_SPARE = 8


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else from the top-p nucleus."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


Reader = Callable[[Sequence[Tokens], Sequence[str], int], Batch]
"""Reads prompts, given as tokens and as texts, that so many tokens may be appended to."""


def generate(
    module: Any,
    encoder: Encoder,
    prompts: Sequence[str],
    encoded: Sequence[Tokens],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    sampling: Sampling,
    rows: int,
    reader: Reader | None = None,
) -> list[str]:
    """Complete each prompt, ending before any `stop`.

    Args:
        encoded: the prompts' tokens, none of them empty.
        rows: how many are decoded at once.
        reader: what reads the prompts and goes on from there; by default `module`.

    Raises:
        NonFiniteOutput: the model gave NaN or infinity.
    """

    def by_module(tokens: Sequence[Tokens], _: Sequence[str], room: int) -> Batch:
        return read(module, tokens, room)

    decoder = _Decoder(module, encoder, stop, max_new_tokens, sampling, reader or by_module)
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    lengths = [len(encoded[i]) for i in order]
    for batch in batches(module, lengths, max_new_tokens, rows):
        chosen = order[batch]
        written = decoder.run([encoded[i] for i in chosen], [prompts[i] for i in chosen])
        for i, tokens in zip(chosen, written, strict=True):
            answers[i] = decoder.text(encoded[i], tokens)
    return answers


class _Decoder:
    """One module with one way of ending and choosing."""

    def __init__(
        self,
        module: Any,
        encoder: Encoder,
        stop: Sequence[str],
        max_new_tokens: int,
        sampling: Sampling,
        reader: Reader,
    ) -> None:
        self._module = module
        self._read = reader
        self._encoder = encoder
        self._stop = tuple(stop)
        self._limit = max_new_tokens
        self._sampling = sampling
        self._ends = end_tokens(module, encoder.tokenizer) | stop_tokens(encoder.tokenizer, stop)
        self._may_stop: dict[int, bool] = {}
        # A token is a byte of text at least, but for special ones and parts of characters.
        self._tail = max((len(text.encode()) for text in stop), default=0) + _SPARE

    def text(self, prompt: Tokens, tokens: Sequence[int]) -> str:
        """What was written, before any stop."""
        return before_stop(self._encoder.decode(prompt, tokens), self._stop)

    @torch.inference_mode()
    def run(self, prompts: Sequence[Tokens], texts: Sequence[str]) -> list[list[int]]:
        """The new tokens of each prompt, end-of-sequence tokens left out; shortest prompt first."""
        written: list[list[int]] = [[] for _ in prompts]
        choose = self._chooser(texts)
        batch = self._read(prompts, texts, self._limit)
        rows = list(range(len(prompts)))  # the prompt of each row of the batch
        at_work = rows  # the prompts that are still written for
        for step in range(self._limit):
            tokens = choose(batch.logits, rows, step)
            new = dict(zip(rows, tokens.tolist(), strict=True))
            at_work = [
                i for i in at_work if not self._is_done(prompts[i], written[i], new[i], step)
            ]
            if not at_work:
                break
            if len(at_work) <= _SHARE_AT_WORK * len(rows):
                working = set(at_work)
                order = closed_up([n for n, row in enumerate(rows) if row in working])
                kept = torch.tensor(order, device=tokens.device)
                batch.keep(kept)
                tokens, rows = tokens[kept], [rows[n] for n in order]
            batch.advance(tokens)
        return written

    def _is_done(self, prompt: Tokens, written: list[int], token: int, step: int) -> bool:
        """Take note of a row's new token; whether it was the last."""
        if token in self._ends:
            return True
        written.append(token)
        return step + 1 == self._limit or self._has_stopped(prompt, written)

    def _has_stopped(self, prompt: Tokens, written: list[int]) -> bool:
        if not self._stop:
            return False
        token = written[-1]
        if token not in self._may_stop:
            self._may_stop[token] = self._could_end_a_stop(token)
        if not self._may_stop[token]:
            return False
        # Decoding the whole each time would cost the square of its length.
        tail = self._encoder.decode((), [*prompt[-4:], *written][-self._tail :])
        if not self._holds_a_stop(tail):
            return False
        return self._holds_a_stop(self._encoder.decode(prompt, written))

    def _holds_a_stop(self, text: str) -> bool:
        return any(stop in text for stop in self._stop)

    def _could_end_a_stop(self, token: int) -> bool:
        """Whether a stop's last character can come with this token: decoding is dear.

        A token may lose its leading space, or be part of a character, when decoded alone.
        """
        piece = " " + self._encoder.decode((), [token])
        return "�" in piece or any(stop[-1] in piece for stop in self._stop)

    def _chooser(self, texts: Sequence[str]) -> Callable[[Tensor, Sequence[int], int], Tensor]:
        if self._sampling.temperature == 0:
            return lambda logits, rows, step: finite_best(logits)
        draws = torch.from_numpy(
            np.stack([draws_of(self._sampling.seed, text, self._limit) for text in texts])
        ).to(self._module.device)

        def sample(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
            finite_best(logits)
            return sampled(logits, draws[list(rows), step].to(logits.device), self._sampling)

        return sample


def sampled(logits: Tensor, draws: Tensor, sampling: Sampling) -> Tensor:
    """Tokens from the nucleus of each row, by inverting its cumulative distribution.

    The nucleus (Holtzman et al., 2019, arXiv:1904.09751) holds the likeliest tokens up to and
    including the one with which their mass reaches `top_p`.

    Args:
        logits: [n, vocabulary].
        draws: [n], uniform in [0, 1).
    """
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    mass, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    upto = mass.cumsum(dim=-1)
    nucleus = mass * (upto - mass < sampling.top_p)
    upto = nucleus.cumsum(dim=-1)
    aim = draws.to(upto.dtype)[:, None] * upto[:, -1:]
    place = torch.searchsorted(upto, aim, right=True)
    last = (nucleus > 0).sum(dim=-1, keepdim=True) - 1
    return tokens.gather(1, place.minimum(last))[:, 0]


def end_tokens(module: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a text, wherever the checkpoint says so."""
    named: list[Any] = [tokenizer.eos_token_id]
    for config in (getattr(module, "generation_config", None), module.config.get_text_config()):
        found = getattr(config, "eos_token_id", None)
        named += found if isinstance(found, list | tuple) else [found]
    return frozenset(int(token) for token in named if token is not None)


def stop_tokens(tokenizer: Any, stop: Sequence[str]) -> frozenset[int]:
    """The stops that are one special token each: they never appear in decoded text."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    known = {**tokenizer.get_added_vocab(), **special}
    return frozenset(int(known[text]) for text in stop if text in known)


def finite_best(logits: Tensor) -> Tensor:
    """The likeliest token of each row of logits [n, vocabulary], in fp32; of equals the first.

    Raises:
        NonFiniteOutput: the largest logit of a row is NaN or infinite.
    """
    if logits.device == torch.device("cpu"):  # numpy takes a tenth of torch's time there
        tokens = torch.from_numpy(logits.numpy().argmax(axis=-1))
    else:
        tokens = logits.argmax(dim=-1)
    best = logits.gather(1, tokens[:, None])  # NaN counts as the largest
    if not math.isfinite(best.sum(dtype=torch.float64)):
        raise NonFiniteOutput("the model's logits are not finite (NaN or infinity)")
    return tokens


def draws_of(seed: int, prompt: str, count: int) -> Any:
    """The random numbers [count] in [0, 1) of a prompt; fewer are the first of more."""
    digest = blake2b(f"{seed}\0{prompt}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return generator.random(count)
