"""What a gateway allows, how long it waits, and the keys that it is given."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what clients may ask.

    Args:
        body_bytes: of a request; beyond it 413.
        prompt_characters: of a prompt, or of a conversation in all; beyond it 400. An expert's own
            context is a second bound.
        answer_tokens: the longest answer that may be asked for, and what a conversation gets that
            names no length.
        active: requests at work or waiting, in all; beyond it 429.
        queue: requests that wait for one expert; beyond it 429.
        arriving: requests whose bodies are being read; beyond it 429.
        bodies_bytes: of all requests that arrive or are at work, as they were sent; beyond it 429.
            One of `body_bytes` is always taken.
    """

    body_bytes: int = 4 << 20
    prompt_characters: int = 400_000
    answer_tokens: int = 2048
    active: int = 512
    queue: int = 256
    arriving: int = 2048
    bodies_bytes: int = 256 << 20


@dataclass(frozen=True)
class Timeouts:
    """How long to wait, in seconds.

    Args:
        connect: until an upstream takes a connection.
        first_byte: until an upstream begins to answer, and between any two parts of a stream.
        whole: until an upstream has given an answer that is not streamed; None for `total`.
        total: for a request in all, waiting for its turn included.
        body: until a client has sent its request.
        shutdown: until what streams is cut off when the server is told to stop.
    """

    connect: float = 5.0
    first_byte: float = 120.0
    whole: float | None = None
    total: float = 600.0
    body: float = 30.0
    shutdown: float = 60.0


COMPLETION_TOKENS = 16
"""What a completion gets that names no length, as at OpenAI."""


def read_key(variable: str, environ: Mapping[str, str]) -> str:
    """A key from the environment, without the end of line that keys from files often have.

    Raises:
        ValueError: it is not set, or no header can hold it; the message does not show it.
    """
    key = environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the variable {variable!r} is not set")
    if not all("!" <= character <= "~" for character in key):
        raise ValueError(
            f"the variable {variable!r} holds spaces, line ends or characters beyond ASCII, which "
            "no key may have"
        )
    return key
