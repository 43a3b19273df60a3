"""Text to tokens and back, each text tokenised once.

A search scores the same items a hundred times with other weights; what does not depend on weights
is kept here.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from modelglue.errors import EvaluationError

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Tokens = tuple[int, ...]
# Tokens of each memory: 256 MB of them at most, and half as much of text.
_REMEMBERED = 1 << 25
# Likewise of decoded texts, whose tokens are objects of their own: some 40 MB.
_DECODED = 1 << 20


@dataclass(frozen=True)
class Continued:
    """A context and a continuation, encoded jointly; the latter begins at token `start`.

    Attributes:
        opening: of a later window of a text, what its first window is a continuation of: a mixture
            that decides once a sample decides on that for all windows alike. () for the context.
    """

    tokens: Tokens
    start: int
    opening: Tokens = ()


class Memory(Generic[Key, Value]):
    """What was made of keys before.

    Args:
        make: makes the values of some keys.
        size: tokens of a key and its value.
        most: of them in all; beyond that what is not asked for is forgotten.
    """

    def __init__(
        self,
        make: Callable[[Sequence[Key]], Iterable[Value]],
        size: Callable[[Key, Value], int],
        most: int,
    ) -> None:
        self._make, self._size, self._most = make, size, most
        self.known: dict[Key, Value] = {}
        self.held = 0

    def __call__(self, keys: Sequence[Key]) -> list[Value]:
        """The values of keys; the same objects as before, where they are known."""
        unknown = [key for key in dict.fromkeys(keys) if key not in self.known]
        if unknown:
            fresh = dict(zip(unknown, self._make(unknown), strict=True))
            self.held += self._sizes(fresh)
            self.known |= fresh
            if self.held > self._most:
                self.known = {key: self.known[key] for key in keys}
                self.held = self._sizes(self.known)
        return [self.known[key] for key in keys]

    def _sizes(self, part: Mapping[Key, Value]) -> int:
        return sum(self._size(key, value) for key, value in part.items())


class Encoder:
    """A tokenizer with a memory.

    Args:
        tokenizer: a transformers tokenizer.
        max_length: the longest sequence that the model takes; longer ones lose their beginning.
        rows: of the model's embedding; None if unknown.
    """

    def __init__(self, tokenizer: Any, max_length: int, *, rows: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.rows = rows
        self._encodings: Memory[str, Tokens] = Memory(self._encoded, _length, _REMEMBERED)
        # Of a context and its continuations, and of a text's windows.
        self._items: Memory[tuple[str, ...], tuple[Continued, ...]]
        self._items = Memory(self._joined, _lengths, _REMEMBERED)
        self._windows: Memory[str, tuple[Continued, ...]]
        self._windows = Memory(self._parted, _lengths, _REMEMBERED)
        # Candidates answer much the same.
        self._texts: Memory[Tokens, str] = Memory(self._decoded, _of_key, _DECODED)
        self._numbers: dict[int, int] = {}
        self._opening = _opening(tokenizer)
        self._bos: str | None = tokenizer.bos_token

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, with the special tokens that the tokenizer puts before a text.

        A text that brings those along (a chat template writes them) does not get them twice.

        Raises:
            EvaluationError: a token has no row in the model's embedding.
        """
        return self._encodings(texts)

    def _encoded(self, texts: Sequence[str]) -> Iterator[Tokens]:
        # Equal numbers are one object, so that a remembered token is no more than a pointer.
        one = self._numbers.setdefault
        encoded = self.tokenizer(texts, add_special_tokens=False).input_ids
        for text, own in zip(texts, encoded, strict=True):
            tokens = tuple(one(token, token) for token in own)
            opened = tokens[: len(self._opening)] == self._opening or (
                self._bos is not None and text.startswith(self._bos)
            )
            whole = tokens if opened else self._opening + tokens
            self._require_rows(whole)
            yield whole

    def prompts(self, texts: Sequence[str], max_new_tokens: int) -> list[Tokens]:
        """Tokens of prompts that leave room for an answer; too long a prompt loses its beginning.

        Raises:
            EvaluationError: the model's context cannot hold the answer.
        """
        room = self.max_length - max_new_tokens
        if room < 1:
            raise EvaluationError(
                f"max_new_tokens is {max_new_tokens}, but the model's context holds "
                f"{self.max_length} tokens in all"
            )
        return [(tokens or self._nothing())[-room:] for tokens in self.encode(texts)]

    def continued(
        self, contexts: Sequence[str], continuations: Sequence[Sequence[str]]
    ) -> list[tuple[Continued, ...]]:
        """Encode each context with each of its continuations, as lm-evaluation-harness does.

        White space at the context's end counts to the continuation; context and continuation are
        encoded as one text, and the continuation is what comes after as many tokens as the context
        has by itself. Where nothing comes after (the tokenizer melts the two together) there is
        nothing to score: an error, as there.

        Raises:
            EvaluationError: a continuation adds no token, or the model's context cannot hold it.
        """
        return self._items([(c, *texts) for c, texts in zip(contexts, continuations, strict=True)])

    def _joined(self, items: Sequence[tuple[str, ...]]) -> Iterator[tuple[Continued, ...]]:
        wholes = [context + text for context, *texts in items for text in texts]
        tails = iter(self.encode(wholes))
        for head, (_, *texts) in zip(
            self.encode([context.rstrip() for context, *_ in items]), items, strict=True
        ):
            yield tuple(self._continued(head, next(tails), text) for text in texts)

    def windows(self, text: str) -> tuple[Continued, ...]:
        """A whole text in pieces that the model's context holds, each token scored in one of them.

        As lm-evaluation-harness cuts a text: every piece is as long as the context allows. The
        first begins behind one token that stands for nothing, also where the tokenizer puts that
        token before the text itself; each other one behind the token before it, the last behind as
        many as there is room for. A text without tokens has no pieces.
        """
        return self._windows([text])[0]

    def _parted(self, texts: Sequence[str]) -> Iterator[tuple[Continued, ...]]:
        room = self.max_length
        for tokens in self.encode(texts):
            whole = self._nothing() + tokens
            ends = [*range(room, len(tokens), room), len(tokens)] if tokens else []
            begins = [0, *ends]
            yield tuple(
                Continued(
                    whole[max(0, end - room) : end + 1],
                    begin - max(0, end - room) + 1,
                    whole[:1] if begin else (),
                )
                for begin, end in zip(begins, ends, strict=False)
            )

    def decode(self, prompt: Tokens, completion: Sequence[int]) -> str:
        """The text that `completion` adds to `prompt`, special tokens left out.

        Decoded behind the prompt's last tokens, since many tokenizers drop the space before a
        text's first word, and code lives by its indentation.
        """
        whole, before = self._texts([(*prompt[-4:], *completion), prompt[-4:]])
        return (
            whole[len(before) :]
            if whole.startswith(before)
            else self._texts([tuple(completion)])[0]
        )

    def _decoded(self, several: Sequence[Tokens]) -> Iterator[str]:
        for tokens in several:
            yield str(
                self.tokenizer.decode(
                    list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )

    def _continued(self, head: Tokens, whole: Tokens, text: str) -> Continued:
        if not head:
            head = self._nothing()
            whole = head + whole
        needed = len(whole) - len(head)
        if needed < 1:
            raise EvaluationError(
                f"the continuation {_start_of(text)} adds no token to its context, so it has no "
                "likelihood; let it begin with a space, or the prompt end in one"
            )
        if needed > self.max_length:
            raise EvaluationError(
                f"the continuation {_start_of(text)} needs {needed} tokens, the model's context "
                f"holds {self.max_length}; split it into shorter items"
            )
        cut = max(0, len(whole) - self.max_length - 1)
        return Continued(whole[cut:], len(head) - cut)

    def _nothing(self) -> Tokens:
        """What stands for an empty text: a model needs at least one token to start from."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                self._require_rows((int(token),))
                return (int(token),)
        raise EvaluationError(
            "an empty prompt needs a beginning- or end-of-sequence token, the tokenizer has neither"
        )

    def _require_rows(self, tokens: Tokens) -> None:
        if problem := rowless_token(self.tokenizer, tokens, self.rows):
            raise EvaluationError(problem)


def _length(_: object, tokens: Tokens) -> int:
    return len(tokens)


def _lengths(_: object, item: Sequence[Continued]) -> int:
    return sum(len(continued.tokens) for continued in item)


def _of_key(tokens: Tokens, _: object) -> int:
    return len(tokens)


def _opening(tokenizer: Any) -> Tokens:
    """What the tokenizer puts before a text: one token, several, or none, whatever it has."""
    whole = tokenizer("x").input_ids
    own = tokenizer("x", add_special_tokens=False).input_ids
    starts = range(len(whole) - len(own) + 1)
    before = next((n for n in starts if whole[n : n + len(own)] == own), 0)
    return tuple(whole[:before])


def rowless_token(tokenizer: Any, tokens: Sequence[int], rows: int | None) -> str | None:
    """What is wrong if a token lies beyond the embedding's rows, in words; None if none does."""
    largest = max(tokens, default=-1)
    if rows is None or largest < rows:
        return None
    return (
        f"the tokenizer gives the token {tokenizer.convert_ids_to_tokens(largest)!r} with id "
        f"{largest}, but the model's embedding has {rows} rows; the tokenizer is not the model's"
    )


def _start_of(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The part of `text` before the first of the stops.

    >>> before_stop("return x\\n\\nprint(1)", ["\\n\\n", "print"])
    'return x'
    """
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]
