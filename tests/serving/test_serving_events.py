"""Server-sent events are read whatever the pieces that they come in."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelglue.mixture.serving.events import BadEvent, read_events
from modelglue.mixture.serving.replies import DONE, event

OBJECTS = [{"text": "a\u2028b\x85c"}, {"text": "日本 🙂\n\r\n"}, {"n": 1}]


def read(parts: list[bytes]) -> list[Any]:
    async def come() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def collect() -> list[Any]:
        return [value async for value in read_events(come())]

    return asyncio.run(collect())


@given(st.lists(st.integers(0, 200), max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_are_the_same_however_they_are_cut(cuts: list[int], ending: bytes) -> None:
    stream = b": hello\n\n" + b"".join(map(event, OBJECTS)) + DONE
    stream = stream.replace(b"\n", ending)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parts = [stream[start:end] for start, end in itertools.pairwise(places)]
    assert read(parts) == [*OBJECTS, None]


def test_a_last_event_without_a_blank_line_counts() -> None:
    assert read([b"data: [DONE]"]) == [None]
    assert read([b"event: x\ndata:{\ndata:}\n"]) == [{}]


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: 3\n\n", b"data: " + b"x" * (17 << 20)])
def test_other_streams_are_refused(data: bytes) -> None:
    with pytest.raises(BadEvent):
        read([data])
