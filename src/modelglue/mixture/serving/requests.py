"""What clients may ask: the bodies of `/v1/chat/completions` and `/v1/completions`, checked.

Fields that nobody knows are ignored. Fields of OpenAI's that would change the answer and that
experts in this process cannot honour are noted in `Request.unsupported`, and refused there.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from modelglue.mixture.serving.refusals import Refusal, too_long
from modelglue.mixture.serving.settings import Limits

Kind = Literal["chat", "completion"]
Message = dict[str, str]

_MOST_STOPS, _LONGEST_STOP = 16, 256
_MOST_PROBLEMS = 10
_SHARED = (
    "model stream stream_options temperature top_p max_tokens stop seed n user logprobs "
    "frequency_penalty presence_penalty logit_bias metadata store service_tier"
)
KNOWN: dict[Kind, frozenset[str]] = {
    "chat": frozenset(
        f"{_SHARED} messages max_completion_tokens top_logprobs tools tool_choice functions "
        "function_call parallel_tool_calls response_format reasoning_effort modalities audio "
        "prediction web_search_options".split()
    ),
    "completion": frozenset(f"{_SHARED} prompt best_of echo suffix".split()),
}
"""OpenAI's fields: what an upstream is told of a request."""

LENGTHS: dict[Kind, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completion": ("max_tokens",),
}
"""The fields that name the longest answer; the first that is given counts."""

# With these values a field asks for nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
    "audio": (),
}


@dataclass(frozen=True)
class Request:
    """A checked request.

    Args:
        prompt: of a completion.
        messages: of a conversation, content as plain text.
        max_tokens: None where the client leaves it open.
        unsupported: fields that only an upstream may honour.
        body: as it came.
    """

    kind: Kind
    model: str
    prompt: str = field(default="", repr=False)
    messages: tuple[Message, ...] = field(default=(), repr=False)
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    unsupported: tuple[str, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> str:
        """The field that holds the text."""
        return "messages" if self.kind == "chat" else "prompt"


def read_json(data: bytes) -> Any:
    """A body's JSON.

    Raises:
        Refusal: it is none, or holds text that UTF-8 cannot write.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refuse(number[:20])

    try:
        value = json.loads(data.decode(), parse_constant=refuse, parse_float=finite)
        if b"\\ud" in data.lower():  # half a surrogate pair is a text that no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, f"the body is no JSON: {reason[:200]}", code="invalid_json") from None
    return value


def parse(kind: Kind, value: Any, limits: Limits) -> Request:
    """Check a body's content.

    Raises:
        Refusal: with all that is wrong.
    """
    if not isinstance(value, dict):
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    fields = _Fields(value)
    text = _chat(fields) if kind == "chat" else _completion(fields)
    temperature = fields.number("temperature", low=0, high=2)
    top_p = fields.number("top_p", low=0, high=1, above=True)
    # Both are checked, though one counts: a server may know the other alone.
    lengths = [fields.whole(name, low=1, high=limits.answer_tokens) for name in LENGTHS[kind]]
    stream = fields.flag("stream")
    options = fields.get("stream_options", dict, "an object")
    if options is not None and not stream:
        fields.problem("stream_options", "may only be given with stream: true")
    fields.refuse_alternatives()
    request = Request(
        kind=kind,
        model=fields.get("model", str, "the name of a model", needed=True) or "",
        prompt=text if isinstance(text, str) else "",
        messages=() if isinstance(text, str) else text,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        max_tokens=next((length for length in lengths if length is not None), None),
        stop=fields.stops(),
        seed=fields.whole("seed", low=-(2**63), high=2**63 - 1),
        stream=stream,
        include_usage=bool((options or {}).get("include_usage")),
        unsupported=fields.unsupported() + _tool_turns(kind, value),
        body=value,
    )
    fields.raise_problems()
    size = sum(len(m["content"]) for m in request.messages) + len(request.prompt)
    if size > limits.prompt_characters:
        raise too_long(
            f"the prompt has {size} characters, this server takes {limits.prompt_characters}",
            param=request.place,
        )
    return request


def _chat(fields: "_Fields") -> tuple[Message, ...]:
    messages = fields.get("messages", list, "a list of messages", needed=True)
    if messages is None:
        return ()
    if not messages:
        fields.problem("messages", "must hold one message at least")
    return tuple(_message(fields, f"messages[{i}]", message) for i, message in enumerate(messages))


def _tool_turns(kind: Kind, value: Mapping[str, Any]) -> tuple[str, ...]:
    """The first message that means more than its text."""
    messages = value.get("messages") if kind == "chat" else None
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict) and (
            message.get("role") in ("tool", "function")
            or message.get("tool_calls")
            or message.get("function_call")
        ):
            return (f"messages[{i}]",)
    return ()


def _message(fields: "_Fields", where: str, message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        fields.problem(where, "must be an object with role and content")
        return {"role": "", "content": ""}
    content = message.get("content")
    if content is None and message["role"] != "user":
        content = ""  # an assistant's turn that only calls tools
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [text for text in parts if isinstance(text, str)]
        if len(texts) < len(parts):
            fields.problem(f"{where}.content", "may hold parts of type text only")
        content = "".join(texts)
    if not isinstance(content, str):
        fields.problem(f"{where}.content", "must be a text, or a list of parts of type text")
        content = ""
    # A newer name for the same role, which no template knows.
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": content}


def _completion(fields: "_Fields") -> str:
    prompt = fields.value.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        fields.problem("prompt", "must be one text; send a request for each, and no token numbers")
        return ""
    return prompt


class _Fields:
    """Takes values of the right type out of a body, and notes what is wrong."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self._problems: list[tuple[str, str]] = []

    def problem(self, name: str, text: str) -> None:
        if len(self._problems) < _MOST_PROBLEMS:
            self._problems.append((name, text))

    def raise_problems(self) -> None:
        if not self._problems:
            return
        told = "; ".join(f"{name}: {text}" for name, text in self._problems)
        raise Refusal(400, told, param=self._problems[0][0], code="invalid_value")

    def get(self, name: str, sort: type, what: str, *, needed: bool = False) -> Any:
        """A field's value; null counts as absent."""
        found = self.value.get(name)
        if found is None:
            if needed:
                self.problem(name, f"is missing; it must be {what}")
            return None
        if not isinstance(found, sort):
            self.problem(name, f"must be {what}")
            return None
        return found

    def flag(self, name: str) -> bool:
        return bool(self.get(name, bool, "true or false"))

    def number(self, name: str, *, low: float, high: float, above: bool = False) -> float | None:
        found = self.value.get(name)
        if found is None:
            return None
        fits = isinstance(found, int | float) and not isinstance(found, bool)
        if not fits or not low <= found <= high or (above and found == low):
            self.problem(name, f"must be a number {'above' if above else 'from'} {low} to {high}")
            return None
        return float(found)

    def whole(self, name: str, *, low: int, high: int) -> int | None:
        found = self.value.get(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
            self.problem(name, f"must be a whole number from {low} to {high}")
            return None
        return found

    def stops(self) -> tuple[str, ...]:
        found = self.value.get("stop")
        if found is None:
            return ()
        texts = [found] if isinstance(found, str) else found
        fits = isinstance(texts, list) and all(
            isinstance(text, str) and len(text) <= _LONGEST_STOP for text in texts
        )
        if not fits or len(texts) > _MOST_STOPS:
            self.problem(
                "stop",
                f"must be a text of at most {_LONGEST_STOP} characters, or a list of at most "
                f"{_MOST_STOPS} such texts",
            )
            return ()
        return tuple(text for text in cast(list[str], texts) if text)

    def refuse_alternatives(self) -> None:
        """One answer a request, and its text alone."""
        for name in ("n", "best_of"):
            if self.value.get(name) not in (None, 1):
                self.problem(name, "only 1 is possible; send a request for each answer")
        for name in ("logprobs", "top_logprobs"):
            found = self.value.get(name)
            # Of a completion, 0 asks for the chosen tokens' own.
            if found is not None and found is not False and (name, found) != ("top_logprobs", 0):
                self.problem(name, "log probabilities are not given here")
        if self.value.get("echo") not in (None, False):
            self.problem("echo", "the prompt is not repeated here")

    def unsupported(self) -> tuple[str, ...]:
        return tuple(
            name
            for name, nothing in _NOTHING.items()
            if self.value.get(name) is not None and self.value[name] not in nothing
        )
