"""A bundle's experts behind one address: who answers what, and how much at once."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import Scope

from modelglue.errors import ModelGlueError
from modelglue.mixture.serving.backend import Backend
from modelglue.mixture.serving.guard import require_allowed
from modelglue.mixture.serving.metrics import Metrics
from modelglue.mixture.serving.refusals import Refusal, queue_full
from modelglue.mixture.serving.requests import Message
from modelglue.mixture.serving.settings import Limits, Timeouts

RouteText = Callable[[str], Awaitable[str]]
"""The expert's name for a text."""
Opening = Callable[[Sequence[Message]], str]


@dataclass
class Gateway:
    """What endpoints share.

    Args:
        name: what clients call the bundle; a request for it is routed.
        route: chooses the expert for a text.
        opening: the text that a conversation is routed on.
        backends: who answers, by the expert's name.
        key: that clients must give, if any.
        host: what the server listens on.
        log_prompts: also write down what was asked.
    """

    name: str
    route: RouteText
    opening: Opening
    backends: Mapping[str, Backend]
    limits: Limits
    timeouts: Timeouts
    metrics: Metrics
    key: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"
    log_prompts: bool = False
    _active: int = 0
    _arriving: int = 0
    _held: int = 0

    def require_allowed(self, scope: Scope) -> None:
        """Refuse who may not ask; see `guard.require_allowed`."""
        require_allowed(scope, key=self.key, host=self.host)

    @property
    def models(self) -> list[str]:
        """What may be asked for: the bundle, or an expert of it."""
        return [self.name, *self.backends]

    async def expert(self, model: str, text: str) -> str:
        """The expert that a request goes to.

        Raises:
            Refusal: there is no such model, or the text cannot be routed.
        """
        if model == self.name:
            try:
                return await self.route(text)
            except ModelGlueError as error:
                raise Refusal(400, f"no route: {error}", code="no_route") from error
        if model not in self.backends:
            raise no_model(model)
        return model

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Let a request come, unless the bodies that are on their way may already be too much.

        Who sends slowly is to take nobody's place among those that are answered.

        Raises:
            Refusal: 429.
        """
        if self._arriving >= self.limits.arriving:
            raise queue_full(f"{self._arriving} requests are on their way to this server")
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """What counts the bytes of a request's body, to be told of each part before it is kept.

        It raises a Refusal (429) where the bodies of all requests would take too much memory.
        """
        own, most = 0, max(self.limits.bodies_bytes, self.limits.body_bytes)

        def take(size: int) -> None:
            nonlocal own
            if self._held + size > most:
                raise queue_full(f"the requests at this server come to {self._held} bytes")
            self._held += size
            own += size

        try:
            yield take
        finally:
            self._held -= own

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Let a request in, unless there are too many.

        Raises:
            Refusal: 429.
        """
        if self._active >= self.limits.active:
            raise queue_full(f"this server works on {self._active} requests")
        self._active += 1
        self.metrics.active.set(self._active)
        try:
            yield
        finally:
            self._active -= 1
            self.metrics.active.set(self._active)


def no_model(name: str) -> Refusal:
    """The refusal of a name that nobody has."""
    return Refusal(404, f"the model {name!r} does not exist", code="model_not_found", param="model")
