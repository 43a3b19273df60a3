"""The same question is known again in another task, wherever that task's items come from."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml

from modelglue.evaluate.file_task import FileTask
from modelglue.evaluate.harness.task import HarnessConfig
from modelglue.evaluate.overlaps import overlaps_across
from modelglue.evaluate.suites.task import SuiteTaskConfig
from modelglue.evaluate.task import Task

DEFINITIONS = Path(lm_eval.__file__).parent / "tasks"


def arc(n: int) -> dict[str, Any]:
    choices = {"text": ["Mars", f"Planet {n}", "Pluto"], "label": ["A", "B", "C"]}
    question = f"Which planet has number {n}?"
    return {"id": f"Mercury_{n}", "question": question, "choices": choices, "answerKey": "B"}


def mmlu(n: int) -> dict[str, Any]:
    choices = [str(n), str(n + 1), "x", "y"]
    return {"question": "Which is largest?", "subject": "maths", "choices": choices, "answer": 1}


def gsm8k(n: int) -> dict[str, Any]:
    return {"question": f"Tom has {n} apples. How many?", "answer": f"He has {n}.\n#### {n}"}


def winogrande(n: int) -> dict[str, Any]:
    sentence = f"Ann gave Bea {n} coins since _ was poor."
    return {"sentence": sentence, "option1": "Ann", "option2": "Bea", "answer": "2"}


# Of each dataset: its records, the suite's two files, a task of the harness, and its definition.
DATASETS: dict[str, Any] = {
    "arc_challenge": (arc, "arc/ARC-Challenge-Test", "tinyAI2_arc/test", "arc/arc_easy.yaml"),
    "mmlu": (mmlu, "mmlu/test", "tinyMMLU/test", "mmlu/default/_default_template_yaml"),
    "gsm8k": (gsm8k, "gsm8k/test", "tinyGSM8k/test", "gsm8k/gsm8k.yaml"),
    "winogrande": (
        winogrande,
        "winogrande/dev",
        "tinyWinogrande/validation",
        "winogrande/default.yaml",
    ),
}


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def of_the_harness(folder: Path, name: str, records: list[dict[str, Any]]) -> Task:
    """A task with the harness's own templates over other data, behind a heading and examples."""
    place = DEFINITIONS / DATASETS[name][3]
    given = yaml.safe_load(place.read_text().replace("!function", ""))
    keys = ("output_type", "doc_to_text", "doc_to_choice", "doc_to_target", "generation_kwargs")
    files = {"test": write(folder / f"{name}.test.jsonl", records)}
    files["train"] = write(folder / f"{name}.train.jsonl", [DATASETS[name][0](n) for n in (90, 91)])
    definition = {
        **{key: given[key] for key in keys if key in given},
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "training_split": "train",
        "test_split": "test",
        "description": "Answer these.\n\n",
    }
    written = yaml.safe_dump(definition)
    for module in place.parent.glob("preprocess_*.py"):
        (folder / module.name).write_text(module.read_text())
        written = written.replace(f" {module.stem}.", f" !function {module.stem}.")
    (folder / f"{name}.yaml").write_text(written)
    return HarnessConfig(f"{name} there", name, include=folder, shots=2).open()


def of_the_suite(folder: Path, name: str, search: list[Any], report: list[Any]) -> Task:
    _, whole, tiny, _ = DATASETS[name]
    write(folder / f"{tiny}.jsonl", search)
    write(folder / f"{whole}.jsonl", report)
    if name == "gsm8k":
        write(folder / "gsm8k/train.jsonl", [gsm8k(n) for n in range(70, 75)])
    return SuiteTaskConfig(name, "paper", folder).open()


@pytest.mark.filterwarnings("ignore")  # the harness's own
@pytest.mark.parametrize("name", DATASETS)
def test_a_benchmark_of_the_harness_is_known_in_the_suite(name: str, tmp_path: Path) -> None:
    record = DATASETS[name][0]
    theirs = of_the_harness(tmp_path, name, [record(n) for n in range(12)])
    theirs.check()
    asked = {
        split: [int(item.id) for item in theirs.items(split)] for split in ("search", "report")
    }
    search, report = asked["search"], asked["report"]
    other = of_the_suite(
        tmp_path / "both", name, [record(n) for n in report[:2]], [record(n) for n in range(12, 20)]
    )
    (problem,) = overlaps_across([theirs, other])
    assert problem.startswith(
        f"tasks {name} and {name} there: 2 report items of {name} there ask what search items of "
    )
    other = of_the_suite(
        tmp_path / "back", name, [record(20)], [record(n) for n in (*search[:3], 12)]
    )
    (problem,) = overlaps_across([other, theirs])
    assert problem.startswith(f"tasks {name} there and {name}: 3 report items of {name} ask")
    other = of_the_suite(
        tmp_path / "none", name, [record(n) for n in (*search[:2], 21)], [record(30)]
    )
    assert overlaps_across([theirs, other]) == []


def test_the_same_words_with_another_right_choice_are_another_question(tmp_path: Path) -> None:
    def task(name: str, right: int, *, searched: int, reported: int) -> Task:
        def items(n: int) -> list[dict[str, Any]]:
            choices = [f"x{n}", f"y{n}"]
            return [{"id": n, "prompt": "Which is true?", "choices": choices, "answer": right}]

        files = {
            "search": write(tmp_path / f"{name}.search.jsonl", items(searched)),
            "report": write(tmp_path / f"{name}.report.jsonl", items(reported)),
        }
        return FileTask.from_mapping(
            {"name": name, "kind": "multiple_choice", **files}, root=tmp_path
        )

    first = task("first", 0, searched=1, reported=2)
    assert overlaps_across([first, task("second", 1, searched=3, reported=1)]) == []
    assert overlaps_across([first, task("third", 0, searched=3, reported=4)]) == []
    assert len(overlaps_across([first, task("fourth", 0, searched=2, reported=1)])) == 2
    assert overlaps_across([first]) == []
