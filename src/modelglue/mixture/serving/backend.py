"""Who answers a request: an expert in this process, or the same expert served elsewhere."""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelglue.mixture.serving.requests import Request


@dataclass
class Trace:
    """What becomes of a request, noted on its way for the log and the metrics.

    Attributes:
        replica: the upstream that answered, where one did.
        retries: how many replicas failed before.
        started: by the monotonic clock, as `first` is: when the first text went to the client.
    """

    endpoint: str
    id: str
    model: str = ""
    expert: str = ""
    stream: bool = False
    replica: str = ""
    retries: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    status: int = 0
    error: str = ""
    prompt: str = field(default="", repr=False)
    started: float = field(default_factory=time.monotonic)
    first: float | None = None


class Backend(Protocol):
    """An expert that can be asked. Replies and chunks are OpenAI's JSON objects.

    Attributes:
        forwards: whether it needs `Request.body`; else that is let go of before it is asked.
    """

    forwards: bool

    async def complete(self, request: Request, trace: Trace) -> dict[str, Any]:
        """The whole answer.

        Raises:
            Refusal: there is none.
        """
        ...

    def stream(self, request: Request, trace: Trace) -> AsyncGenerator[dict[str, Any], None]:
        """The answer in chunks; nothing is given before the answer has begun.

        Closing the generator ends the work.

        Raises:
            Refusal: there is none, or it broke off.
        """
        ...

    def state(self) -> dict[str, Any]:
        """For `/health`: `live`, and what else can be told to anybody."""
        ...
