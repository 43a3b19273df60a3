"""One answer, token by token, as text that can be told at once.

A token may end amid a character, and a text may turn out to be the beginning of a stop: what may
still change is kept back until it is settled, so that the pieces put together are what
`LanguageModel.generate` gives for the same prompt.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from modelglue.evaluate.decoding import read
from modelglue.evaluate.encoding import Encoder, Tokens
from modelglue.evaluate.generation import (
    Sampling,
    draws_of,
    end_tokens,
    finite_best,
    sampled,
    stop_tokens,
)
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.serving.refusals import Refusal, too_long
from modelglue.mixture.serving.requests import Request
from modelglue.mixture.serving.settings import COMPLETION_TOKENS

# Below it a temperature is 0: logits divided by less overflow.
_GREEDY = 1e-4


@dataclass(frozen=True)
class Piece:
    """What a token adds to an answer.

    Args:
        text: may be empty, where more is needed to tell.
        finish: with the last piece, why it is the last: "stop" or "length".
        prompt_tokens, completion_tokens: so far.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish: str | None = None


def write(model: HuggingFaceModel, request: Request, *, longest: int) -> Iterator[Piece]:
    """Answer a request; a piece for each token, and one at the end.

    Args:
        longest: tokens of an answer for which no length was asked.

    Raises:
        Refusal: the model's context or its chat template cannot hold the request.
        EvaluationError: the model gave NaN, or its tokenizer is not its own.
    """
    prompt = _prompt(model, request)
    # Its own encoder for each request: the model's remembers every text that it has seen.
    encoder = Encoder(model.tokenizer, model.encoder.max_length, rows=model.encoder.rows)
    limit = _room(encoder, prompt, request, longest)
    tokens = encoder.prompts([prompt], limit)[0]
    yield from _written(model, encoder, prompt, tokens, limit, request)


@torch.inference_mode()
def _next_tokens(
    model: HuggingFaceModel, prompt: str, tokens: Tokens, limit: int, sampling: Sampling
) -> Iterator[int]:
    """Token after token, without regard to which ends the text."""
    module = model.module
    draws = None
    if sampling.temperature > 0:
        draws = torch.from_numpy(draws_of(sampling.seed, prompt, limit)).to(module.device)
    batch = read(module, [tokens], limit)
    for step in range(limit):
        chosen = finite_best(batch.logits)
        if draws is not None:
            chosen = sampled(batch.logits, draws[step : step + 1], sampling)
        yield int(chosen)
        if step + 1 < limit:
            batch.advance(chosen)


def _written(
    model: HuggingFaceModel,
    encoder: Encoder,
    prompt: str,
    tokens: Tokens,
    limit: int,
    request: Request,
) -> Iterator[Piece]:
    temperature = request.temperature if request.temperature >= _GREEDY else 0.0
    seed = secrets.randbits(63) if request.seed is None else request.seed
    sampling = Sampling(temperature, request.top_p, seed)
    ends = end_tokens(model.module, model.tokenizer) | stop_tokens(model.tokenizer, request.stop)
    text = _Text(encoder, tokens, request.stop)
    count, finish = 0, "length"
    for token in _next_tokens(model, prompt, tokens, limit, sampling):
        if token in ends:
            finish = "stop"
            break
        count += 1
        piece = text.add(token)
        if text.stopped:
            yield Piece(piece, len(tokens), count, "stop")
            return
        yield Piece(piece, len(tokens), count)
    yield Piece(text.rest(), len(tokens), count, finish)


class _Text:
    """What tokens say, as far as it is settled."""

    def __init__(self, encoder: Encoder, prompt: Tokens, stop: Sequence[str]) -> None:
        self._encoder = encoder
        self._prompt = prompt
        self._stop = stop
        self._tokens: list[int] = []
        self._text = ""
        self._told = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be told after another token."""
        self._tokens.append(token)
        self._text = text = self._encoder.decode(self._prompt, self._tokens)
        if not text.startswith(self._told):
            # Bytes that make no character can change what was a character before them: a decoder's
            # last word comes with the end.
            return ""
        # Nothing that may be part of a stop has been told.
        found = [at for stop in self._stop if (at := text.find(stop, len(self._told))) >= 0]
        if found:
            self.stopped = True
            return self._tell(min(found))
        settled = len(text.rstrip("�"))
        return self._tell(settled - self._begun_stop(text[:settled]))

    def rest(self) -> str:
        """What was kept back."""
        return self._tell(len(self._text))

    def _tell(self, end: int) -> str:
        piece = self._text[len(self._told) : end]
        self._told += piece
        return piece

    def _begun_stop(self, text: str) -> int:
        """The characters at the end that may be the beginning of a stop."""
        most = max(map(len, self._stop), default=1) - 1
        return next(
            (
                size
                for size in range(min(most, len(text)), 0, -1)
                if any(stop.startswith(text[-size:]) for stop in self._stop)
            ),
            0,
        )


def _prompt(model: HuggingFaceModel, request: Request) -> str:
    if request.kind == "completion":
        return request.prompt
    from jinja2.exceptions import TemplateError

    if not model.tokenizer.chat_template:
        raise Refusal(
            400,
            "the expert for this conversation has no chat template; complete its text with "
            "/v1/completions, or add a chat_template.jinja to the expert",
            code="no_chat_template",
        )
    try:
        return model.chat(request.messages)
    except (TemplateError, TypeError, ValueError) as error:
        raise Refusal(
            400, f"the expert's chat template refuses the conversation: {error}", param="messages"
        ) from error


def _room(encoder: Encoder, prompt: str, request: Request, longest: int) -> int:
    """How many tokens the answer may have."""
    context, size = encoder.max_length, max(1, len(encoder.encode([prompt])[0]))
    if size >= context:
        raise too_long(
            f"the expert's context holds {context} tokens, and the prompt has {size}",
            param=request.place,
        )
    if request.max_tokens is None:
        usual = COMPLETION_TOKENS if request.kind == "completion" else longest
        return min(usual, longest, context - size)
    if size + request.max_tokens > context:
        raise too_long(
            f"the expert's context holds {context} tokens; the prompt has {size}, and "
            f"{request.max_tokens} were asked for",
            param=request.place,
        )
    return request.max_tokens
