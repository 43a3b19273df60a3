"""Pieces put together are the whole answer; what is not settled waits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from modelglue.evaluate.encoding import Encoder, before_stop
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.mixture.serving import writing
from modelglue.mixture.serving.refusals import Refusal
from modelglue.mixture.serving.requests import Request
from modelglue.mixture.serving.writing import Piece, write

TOKENIZER = tiny.tokenizer()
ENCODER = Encoder(TOKENIZER, 512)
TEXTS = st.text(alphabet="ab \n.é日🙂", max_size=12)


def pieces_of(text: str, stop: tuple[str, ...] = ()) -> list[str]:
    """What is told of a text that comes a byte at a time."""
    written = writing._Text(ENCODER, (), stop)
    pieces = []
    for token in TOKENIZER(text, add_special_tokens=False).input_ids:
        pieces.append(written.add(token))
        if written.stopped:
            return pieces
    return [*pieces, written.rest()]


@given(TEXTS)
def test_a_character_is_never_split(text: str) -> None:
    pieces = pieces_of(text)
    assert "".join(pieces) == text
    assert "�" not in "".join(pieces)


@given(TEXTS, st.lists(st.text(alphabet="ab\né🙂", min_size=1, max_size=4), max_size=3))
def test_no_part_of_a_stop_is_ever_told(text: str, stops: list[str]) -> None:
    pieces = pieces_of(text, tuple(stops))
    # A text ends with the stop that is whole first; before it, nothing of it has been told.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert "".join(pieces) == before_stop(text[: min(ends, default=len(text))], stops)


def test_what_cannot_be_a_stop_is_told_at_once() -> None:
    assert pieces_of("abc", ("zz",))[:3] == ["a", "b", "c"]
    assert pieces_of("abc", ("cd",)) == ["a", "b", "", "c"]


@pytest.mark.parametrize(
    ("kept", "told"), [([0, 1], "�"), ([0, 3], "�A"), ([3, 0, 1, 2], "A日"), ([1, 1], "��")]
)
def test_bytes_that_make_no_character_are_told_when_nothing_can_follow(
    kept: list[int], told: str
) -> None:
    tokens = TOKENIZER("日A", add_special_tokens=False).input_ids
    assert len(tokens) == 4
    written = writing._Text(ENCODER, (), ())
    pieces = [written.add(tokens[place]) for place in kept]
    assert "".join(pieces) + written.rest() == told
    assert not pieces[-1].endswith("�")


@pytest.fixture(scope="module")
def model(expert_folders: dict[str, Any]) -> HuggingFaceModel:
    return HuggingFaceModel.load(expert_folders["numbers"])


def written(model: HuggingFaceModel, **fields: Any) -> list[Piece]:
    given_fields = {"temperature": 0.0, "max_tokens": 24, **fields}
    request = Request("completion", "numbers", **given_fields)
    return list(write(model, request, longest=64))


@pytest.mark.parametrize("prompt", ["Q: 12 9", "日本", ""])
@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.9, "top_p": 0.8, "seed": 3}, {"temperature": 2.0, "seed": -1}]
)
def test_pieces_are_what_the_model_generates(
    model: HuggingFaceModel, prompt: str, how: dict[str, Any]
) -> None:
    pieces = written(model, prompt=prompt, **how)
    alone = model.generate([prompt], max_new_tokens=24, **{"temperature": 0.0, **how})[0]
    assert "".join(piece.text for piece in pieces) == alone
    assert pieces[-1].finish in ("stop", "length")
    assert all(piece.finish is None for piece in pieces[:-1])


def test_stops_end_an_answer_where_the_model_ends_it(model: HuggingFaceModel) -> None:
    whole = model.generate(["Q: 12 9"], max_new_tokens=24)[0]
    for size in (1, 2, 3):
        stop = (whole[6 : 6 + size], "never")
        pieces = written(model, prompt="Q: 12 9", stop=stop)
        alone = model.generate(["Q: 12 9"], max_new_tokens=24, stop=stop)[0]
        assert "".join(piece.text for piece in pieces) == alone
        assert pieces[-1].finish == "stop"


def test_without_a_seed_samples_differ(model: HuggingFaceModel) -> None:
    answers = {
        "".join(piece.text for piece in written(model, prompt="Q: 1", temperature=1.0))
        for _ in range(4)
    }
    assert len(answers) > 1


def test_tokens_are_counted(model: HuggingFaceModel) -> None:
    last = written(model, prompt="Q: 12 9", max_tokens=5)[-1]
    assert (last.completion_tokens, last.finish) == (5, "length")
    assert last.prompt_tokens == len(model.tokenizer("Q: 12 9").input_ids)


def test_a_prompt_that_the_context_cannot_hold_is_refused(model: HuggingFaceModel) -> None:
    for prompt, most in (("x" * 512, None), ("x" * 500, 24)):
        with pytest.raises(Refusal) as caught:
            written(model, prompt=prompt, max_tokens=most)
        assert caught.value.code == "context_length_exceeded"
    # A length that nobody asked for gives way.
    assert written(model, prompt="x" * 505, max_tokens=None)[-1].completion_tokens <= 7


def test_what_was_asked_is_not_remembered(model: HuggingFaceModel) -> None:
    encoder = model.encoder
    memories = (encoder._encodings, encoder._items, encoder._windows, encoder._texts)
    before = [dict(memory.known) for memory in memories]
    written(model, prompt="Q: a secret")
    assert [memory.known for memory in memories] == before
