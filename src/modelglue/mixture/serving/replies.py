"""What clients get: OpenAI's JSON objects, whole or in chunks, and the events that carry them."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelglue.mixture.serving.requests import Kind

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Reply:
    """The objects of one answer that is written in this process.

    Args:
        include_usage: whether a stream ends with a chunk of token counts.
    """

    kind: Kind
    id: str
    include_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> dict[str, Any]:
        """The first chunk of a conversation's turn: whose it is."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def chunk(self, text: str) -> dict[str, Any]:
        """Some more of the answer."""
        return self._chunk({"content": text} if self.kind == "chat" else text, None)

    def ending(self, finish: str) -> dict[str, Any]:
        """The last chunk: why the answer ends here."""
        return self._chunk({} if self.kind == "chat" else "", finish)

    def counts(self, prompt: int, completion: int) -> dict[str, Any]:
        """The chunk of token counts."""
        return {**self._head(streamed=True), "choices": [], "usage": usage(prompt, completion)}

    def whole(self, text: str, finish: str, *, prompt: int, completion: int) -> dict[str, Any]:
        """The answer in one."""
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.kind == "chat"
            else {"text": text}
        )
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        head = self._head(streamed=False)
        return {**head, "choices": [choice], "usage": usage(prompt, completion)}

    def _chunk(self, said: Any, finish: str | None) -> dict[str, Any]:
        name = "delta" if self.kind == "chat" else "text"
        choice = {"index": 0, name: said, "logprobs": None, "finish_reason": finish}
        counts = {"usage": None} if self.include_usage else {}
        return {**self._head(streamed=True), "choices": [choice], **counts}

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        chat = "chat.completion.chunk" if streamed else "chat.completion"
        prefix = "chatcmpl-" if self.kind == "chat" else "cmpl-"
        return {
            "id": prefix + self.id,
            "object": chat if self.kind == "chat" else "text_completion",
            "created": self.created,
        }


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Token counts."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def stamped(reply: Mapping[str, Any], *, model: str, expert: str) -> dict[str, Any]:
    """The object under the name that the client asked for, with the expert where OpenAI's
    interface has a place for it."""
    return {**reply, "model": model, "system_fingerprint": f"modelglue:{expert}"}


def event(value: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"


def encoded(value: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
