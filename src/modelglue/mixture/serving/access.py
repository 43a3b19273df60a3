"""One line of JSON for each request. What was asked and answered is not in it unless wanted."""

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

from modelglue.mixture.serving.backend import Trace

ACCESS = logging.getLogger("modelglue.access")
FAILURES = logging.getLogger("modelglue.serve")


def note(trace: Trace, *, client: Any) -> None:
    """Write a request down when it has ended."""
    if not ACCESS.isEnabledFor(logging.INFO):
        return
    record: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": trace.id,
        "client": client[0] if client else None,
        "endpoint": trace.endpoint,
        "model": trace.model[:200],
        "expert": trace.expert,
        "stream": trace.stream,
        "status": trace.status,
        "seconds": round(time.monotonic() - trace.started, 4),
    }
    if trace.first is not None:
        record["first_token_seconds"] = round(trace.first - trace.started, 4)
    optional = {
        "replica": trace.replica,
        "retries": trace.retries,
        "prompt_tokens": trace.prompt_tokens,
        "completion_tokens": trace.completion_tokens,
        "error": trace.error,
        "prompt": trace.prompt,
    }
    record.update({name: value for name, value in optional.items() if value})
    ACCESS.info(json.dumps(record, ensure_ascii=False))


def note_failure(trace: Trace) -> None:
    """Write down the exception that is being handled, and at which request it came."""
    FAILURES.exception("request %s", trace.id)
