import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from modelglue.errors import ConfigError, TaskError
from modelglue.evaluate.file_task import FileTask
from modelglue.evaluate.model import Likelihood

SHOWN: dict[str, dict[str, Any]] = {
    "multiple_choice": {"prompt": "1 + 1 =", "choices": ["2", "3"], "answer": 0},
    "generate": {"prompt": "1 + 1 =", "answer": "2"},
    "text": {"text": "1 + 1 =", "reference": "2"},
}
ASKED: dict[str, dict[str, Any]] = {
    "multiple_choice": {"prompt": "2 + 3 =", "choices": ["5", "6"], "answer": 0},
    "generate": {"prompt": "2 + 3 =", "answer": "5"},
    "text": {"text": "2 + 3 =", "reference": "5"},
}


class Listening:
    """Remembers what it is asked; answers "5" and then goes on to another example."""

    parameters_stored = parameters_active = 0

    def __init__(self) -> None:
        self.contexts: list[str] = []
        self.stop: Sequence[str] = ()

    def loglikelihoods(self, contexts: Any, continuations: Any) -> list[list[Likelihood]]:
        self.contexts += contexts
        return [[Likelihood(-n - 1.0, 1, 1, False) for n, _ in enumerate(t)] for t in continuations]

    def generate(self, prompts: Any, *, stop: Sequence[str], **_: Any) -> list[str]:
        self.contexts += prompts
        self.stop = stop
        return [" 5\n\n1 + 1 = 2" for _ in prompts]


def task_of(folder: Path, kind: str, shown: Sequence[Any] = (), **settings: Any) -> FileTask:
    lines = [{"id": f"shown-{n}", **one} for n, one in enumerate(shown)]
    (folder / "examples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (folder / "search.jsonl").write_text(json.dumps({"id": "asked", **ASKED[kind]}) + "\n")
    mapping = {"name": "t", "kind": kind, "search": "search.jsonl", **settings}
    return FileTask.from_mapping(mapping, root=folder, splits=["search"])


def numbered(kind: str, count: int) -> list[dict[str, Any]]:
    """The example with other numbers, so that no two are the same question."""
    text = json.dumps(SHOWN[kind])
    return [json.loads(text.replace("1 + 1", f"{n} + 1")) for n in range(1, count + 1)]


@pytest.mark.parametrize("kind", sorted(SHOWN))
def test_examples_stand_before_every_item_with_their_answers(kind: str, tmp_path: Path) -> None:
    model = Listening()
    task = task_of(tmp_path, kind, numbered(kind, 3), shots=2, examples="examples.jsonl")
    task.check()
    scores = task.evaluate(model, "search")
    assert model.contexts == ["1 + 1 = 2\n\n2 + 1 = 2\n\n2 + 3 ="]
    assert scores.items == ("asked",)


@pytest.mark.parametrize("kind", sorted(SHOWN))
def test_without_shots_the_item_stands_alone(kind: str, tmp_path: Path) -> None:
    model = Listening()
    task_of(tmp_path, kind).evaluate(model, "search")
    none = task_of(tmp_path, kind, numbered(kind, 1), shots=0, examples="examples.jsonl")
    none.evaluate(model, "search")
    assert model.contexts == ["2 + 3 ="] * 2


def test_behind_examples_a_completion_ends_at_a_blank_line(tmp_path: Path) -> None:
    settings = {"shots": 1, "examples": "examples.jsonl", "extract": "[0-9]+"}
    model = Listening()
    task = task_of(tmp_path, "generate", numbered("generate", 1), **settings)
    assert task.evaluate(model, "search").values == (1.0,)
    assert model.stop == ("\n\n",)
    own = task_of(tmp_path, "generate", numbered("generate", 1), **settings, stop=["Q:"])
    assert own.evaluate(model, "search").values == (0.0,)
    assert model.stop == ("Q:",)


def test_a_wrong_example_is_named_with_file_line_and_field(tmp_path: Path) -> None:
    examples = [*numbered("multiple_choice", 1), {**SHOWN["multiple_choice"], "answer": 7}]
    task = task_of(tmp_path, "multiple_choice", examples, shots=1, examples="examples.jsonl")
    with pytest.raises(TaskError, match=r"examples\.jsonl:2: answer: 7 is no index"):
        task.check()


def test_more_shots_than_examples_are_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, "text", numbered("text", 2), shots=3, examples="examples.jsonl")
    with pytest.raises(TaskError, match=r"examples\.jsonl: holds 2 items, and shots is 3"):
        task.check()


def test_a_missing_file_of_examples_is_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, "text", shots=3, examples="exmples.jsonl")
    with pytest.raises(TaskError, match=r'no such file; did you mean "examples\.jsonl"'):
        task.check()


@pytest.mark.parametrize("kind", sorted(SHOWN))
def test_an_example_that_is_also_an_item_is_refused(kind: str, tmp_path: Path) -> None:
    examples = [*numbered(kind, 1), ASKED[kind]]
    settings = {"examples": "examples.jsonl"}
    task = task_of(tmp_path, kind, examples, shots=2, **settings)
    message = r"search\.jsonl:1: question: the same stands among the examples, examples\.jsonl:2"
    with pytest.raises(TaskError, match=message):
        task.check()
    task_of(tmp_path, kind, examples, shots=1, **settings).check()  # that one is not shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 5}, r"examples: is missing; a file to take the 5 shots from"),
        ({"examples": "e.jsonl"}, r"shots: is missing; how many of the examples"),
        ({"shots": -1, "examples": "e.jsonl"}, r"shots: must be a whole number of at least 0"),
        ({"shots": 1, "examples": " "}, r"examples: must be a file, not ' '"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(tmp_path, "text", **settings)


def test_a_configuration_is_written_as_it_can_be_read(tmp_path: Path) -> None:
    task = task_of(tmp_path, "text", numbered("text", 2), shots=2, examples="examples.jsonl")
    mapping = json.loads(json.dumps(task.config.to_mapping()))
    assert mapping["examples"] == str(tmp_path / "examples.jsonl")
    again = FileTask.from_mapping(mapping, root=Path("/elsewhere"), splits=["search"])
    assert again.config == task.config


def test_other_examples_make_another_digest(tmp_path: Path) -> None:
    task = task_of(tmp_path, "text", numbered("text", 2), shots=1, examples="examples.jsonl")
    before = task.digest()
    task_of(tmp_path, "text", numbered("text", 2)[::-1])
    assert task.digest() != before
