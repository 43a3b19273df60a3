"""What a client is told when it gets no answer, in OpenAI's shape."""

from typing import Any


class Refusal(Exception):
    """A request that is not answered, or no further.

    Args:
        status: of HTTP.
        code: one word for programs.
        param: the field of the request that is at fault.
        kind: OpenAI's `type`.
        retry_after: seconds after which the same request may fare better.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object that says so."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def queue_full(what: str, *, retry_after: int = 1) -> Refusal:
    """Too many requests at once."""
    return Refusal(
        429,
        f"{what}; try again in {retry_after} s",
        code="queue_full",
        kind="rate_limit_error",
        retry_after=retry_after,
    )


def too_long(message: str, *, param: str) -> Refusal:
    """A prompt, or a prompt and its answer, that the model's context cannot hold."""
    return Refusal(400, message, code="context_length_exceeded", param=param)
