"""An expert that answers in this process."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from modelglue.errors import ModelGlueError
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.serving.backend import Trace
from modelglue.mixture.serving.pool import ExpertPool
from modelglue.mixture.serving.refusals import Refusal
from modelglue.mixture.serving.replies import Reply
from modelglue.mixture.serving.requests import Request
from modelglue.mixture.serving.writing import Piece, write


class LocalExpert:
    """A `Backend` over one expert of a pool.

    Args:
        longest: tokens of an answer for which the client asks no length.
    """

    def __init__(self, name: str, pool: ExpertPool, *, longest: int) -> None:
        self.forwards = False
        self._name = name
        self._pool = pool
        self._longest = longest

    def state(self) -> dict[str, Any]:
        """See `Backend.state`."""
        return {"live": True, "loaded": self._pool.loaded(self._name)}

    async def complete(self, request: Request, trace: Trace) -> dict[str, Any]:
        """See `Backend.complete`."""
        texts, finish, prompt, completion = [], "length", 0, 0
        async with aclosing(self._pieces(request, trace)) as pieces:
            async for piece in pieces:
                texts.append(piece.text)
                finish = piece.finish or finish
                prompt, completion = piece.prompt_tokens, piece.completion_tokens
        reply = Reply(request.kind, trace.id)
        return reply.whole("".join(texts), finish, prompt=prompt, completion=completion)

    async def stream(self, request: Request, trace: Trace) -> AsyncGenerator[dict[str, Any], None]:
        """See `Backend.stream`."""
        reply = Reply(request.kind, trace.id, request.include_usage)
        begun = request.kind == "completion"
        async with aclosing(self._pieces(request, trace)) as pieces:
            async for piece in pieces:
                if not begun:
                    begun = True
                    yield reply.opening()
                if piece.text:
                    yield reply.chunk(piece.text)
                if piece.finish:
                    yield reply.ending(piece.finish)
                    if request.include_usage:
                        yield reply.counts(piece.prompt_tokens, piece.completion_tokens)

    async def _pieces(self, request: Request, trace: Trace) -> AsyncGenerator[Piece, None]:
        if request.unsupported:
            raise Refusal(
                400,
                f"{', '.join(request.unsupported)}: not possible with expert {self._name!r}, which "
                "answers inside the gateway; leave it out, or serve the expert elsewhere",
                param=request.unsupported[0],
                code="unsupported_parameter",
            )

        def work(model: HuggingFaceModel) -> Iterator[Piece]:
            return write(model, request, longest=self._longest)

        try:
            async with aclosing(self._pool.answer(self._name, work)) as pieces:
                async for piece in pieces:
                    trace.prompt_tokens = piece.prompt_tokens
                    trace.completion_tokens = piece.completion_tokens
                    yield piece
        except ModelGlueError as error:
            raise Refusal(500, f"expert {self._name!r}: {error}", code="expert_failed") from error
