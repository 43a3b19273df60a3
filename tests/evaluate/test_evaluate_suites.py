"""Suites over small files in the forms in which the datasets are published."""

import ast
import gzip
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelglue.errors import ConfigError, TaskError
from modelglue.evaluate.encoding import before_stop
from modelglue.evaluate.kinds import Item, kinds, settings_of
from modelglue.evaluate.model import Likelihood
from modelglue.evaluate.sandbox import Limits, Outcome, probe
from modelglue.evaluate.suites import humanevalpack as humanevalpack_suite
from modelglue.evaluate.suites import mbpp, published
from modelglue.evaluate.suites.paper import PAPER
from modelglue.evaluate.suites.published import Published, read_rows
from modelglue.evaluate.suites.task import SuiteTask, SuiteTaskConfig
from modelglue.evaluate.task_config import parse_tasks
from modelglue.recipe.evaluate import tasks_of

Records = list[dict[str, Any]]


def arc(n: int) -> dict[str, Any]:
    return {
        "id": f"Mercury_{n}",
        "question": f"Which planet is number {n}?",
        "choices": {"text": ["Mars", "Venus", f"Planet {n}"], "label": ["A", "B", "C"]},
        "answerKey": "ABC"[n % 3],
    }


def winogrande(n: int) -> dict[str, Any]:
    return {
        "sentence": f"Ann gave Bea {n} coins since _ was poor.",
        "option1": "Ann",
        "option2": "Bea",
        "answer": str(1 + n % 2),
    }


def mmlu(n: int) -> dict[str, Any]:
    return {
        "question": "Which of these is largest? ",
        "subject": "elementary_mathematics",
        "choices": [str(n), str(n + 1), str(n + 2), "0"],
        "answer": n % 4,
    }


def gsm8k(n: int) -> dict[str, Any]:
    answer = f"{n} + 2000 = <<{n}+2000={n + 2000}>>{n + 2000:,}\n#### {n + 2000:,}"
    return {"question": f"Tom has {n} apples and buys 2000. How many has he?", "answer": answer}


def mbpp_record(n: int) -> dict[str, Any]:
    return {
        "task_id": n,
        "text": f"Write a function to add {n}.",
        "code": f"def add(x):\r\n  return x + {n}",
        "test_list": [f"assert add(1) == {n + 1}", f"assert add(2) == {n + 2}"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


def humaneval(n: int) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def add{n}(x):\n    """Add {n}."""\n',
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        "entry_point": f"add{n}",
    }


def humanevalpack(n: int) -> dict[str, Any]:
    return {
        "task_id": f"JavaScript/{n}",
        "prompt": f"const add{n} = (x) => {{\n",
        "canonical_solution": f"  return x + {n};\n}}\n",
        "test": f"console.assert(add{n}(1) === {n + 1})\n",
        "entry_point": f"add{n}",
    }


# Of each dataset: file, records. Search and report data overlap wherever they can.
FILES: dict[str, tuple[str, Records]] = {
    "arc/test": ("arc/ARC-Challenge/test-00000-of-00001.parquet", [arc(n) for n in range(8)]),
    "arc/tiny": ("tinyAI2_arc/ARC-Challenge/test.jsonl", [arc(n) for n in (2, 5)]),
    "winogrande/validation": ("winogrande/dev.jsonl", [winogrande(n) for n in range(8)]),
    "winogrande/tiny": (
        "tinyWinogrande/winogrande_xl/validation-00000-of-00001.parquet",
        [winogrande(n) for n in (3, 4)],
    ),
    "mmlu/test": ("mmlu/all/test-00000-of-00001.parquet", [mmlu(n) for n in range(8)]),
    "mmlu/tiny": ("tinyMMLU/all/test-00000-of-00001.parquet", [mmlu(n) for n in (6, 7)]),
    "gsm8k/test": ("gsm8k/test.jsonl", [gsm8k(n) for n in range(8)]),
    "gsm8k/train": ("gsm8k/train.jsonl", [gsm8k(n) for n in range(100, 107)]),
    "gsm8k/tiny": ("tinyGSM8k/test.jsonl", [gsm8k(n) for n in (0, 7)]),
    "mbpp": ("mbpp/mbpp.jsonl", [mbpp_record(n) for n in (2, 11, 510, 511, 600, 601)]),
    "humaneval": ("humaneval/HumanEval.jsonl.gz", [humaneval(n) for n in range(10)]),
    "humanevalpack": (
        "humanevalpack/humanevalpack_js.jsonl",
        [humanevalpack(n) for n in range(10)],
    ),
}


def write(path: Path, records: Records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, records in FILES.values():
        write(folder / name, records)
    return folder


def task_of(name: str, data: Path, suite: str = "paper") -> SuiteTask:
    return SuiteTaskConfig(name, suite, data).open()


class Knowing:
    """A model that knows what to say to a prompt."""

    parameters_stored = parameters_active = 0

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.settings: dict[str, Any] = {}

    def generate(self, prompts: Any, **settings: Any) -> list[str]:
        self.settings = settings
        return [self.answer(prompt) for prompt in prompts]

    def loglikelihoods(self, contexts: Any, continuations: Any) -> list[list[Likelihood]]:
        """The likelier, the nearer the end of its context an answer's words stand."""
        return [
            [Likelihood(float(context.rfind(text.strip())), 1, 1, False) for text in texts]
            for context, texts in zip(contexts, continuations, strict=True)
        ]


# What counts in both


LEFT = {
    "arc_challenge": (2, ["Mercury_0", "Mercury_1", "Mercury_3", "Mercury_4", "Mercury_6"]),
    "winogrande": (2, ["winogrande/0", "winogrande/1", "winogrande/2", "winogrande/5"]),
    "mmlu": (2, ["mmlu/0", "mmlu/1", "mmlu/2", "mmlu/3", "mmlu/4", "mmlu/5"]),
    "gsm8k": (2, ["gsm8k/1", "gsm8k/2", "gsm8k/3", "gsm8k/4", "gsm8k/5", "gsm8k/6"]),
    "mbpp": (2, ["11", "510"]),
}


@pytest.mark.parametrize("name", LEFT)
def test_no_question_of_the_search_counts_in_the_report(name: str, data: Path) -> None:
    task = task_of(name, data)
    anchors, left = LEFT[name]
    assert len(task.items("search")) == anchors
    assert [item.id for item in task.items("report")][: len(left)] == left
    search = {item.prompt for item in task.items("search")}
    assert not search & {item.prompt for item in task.items("report")}
    assert not {i.id for i in task.items("search")} & {i.id for i in task.items("report")}


def test_a_problem_of_the_javascript_fifth_does_not_count_in_python(data: Path) -> None:
    task = task_of("humaneval", data)
    search = {item.id.rpartition("/")[2] for item in task.items("search")}
    report = {item.id.rpartition("/")[2] for item in task.items("report")}
    assert len(search) == 2
    assert report == {str(n) for n in range(10)} - search


def test_a_question_is_known_again_in_other_capitals_and_spaces(tmp_path: Path) -> None:
    anchor = {**gsm8k(3), "question": " tom has  3 APPLES and buys 2000. How many has he?\n"}
    write(tmp_path / "tinyGSM8k/test.jsonl", [anchor])
    write(tmp_path / "gsm8k/test.jsonl", [gsm8k(n) for n in range(5)])
    write(tmp_path / "gsm8k/train.jsonl", [gsm8k(n) for n in range(10, 15)])
    report = task_of("gsm8k", tmp_path).items("report")
    assert [item.id for item in report] == [f"gsm8k/{n}" for n in (0, 1, 2, 4)]


def test_the_report_by_itself_holds_what_it_holds_after_a_search(data: Path) -> None:
    for name in PAPER:
        alone = task_of(name, data, "paper-report")
        assert alone.items("report") == task_of(name, data).items("report")
        with pytest.raises(TaskError, match="paper-report has no search items"):
            alone.items("search")


def test_the_splits_of_mbpp_share_no_id() -> None:
    rows = [published.Row(str(n), "here", mbpp_record(n)) for n in range(1, 975)]
    search = {question.id for question in mbpp.validation_questions(rows)}
    report = {question.id for question in mbpp.test_questions(rows)}
    assert search == {str(n) for n in range(511, 601)}
    assert report == {str(n) for n in range(11, 511)}


def test_the_fifth_of_humanevalpack_is_33_of_164_whatever_their_order(tmp_path: Path) -> None:
    chosen = []
    for order in (1, -1):
        write(
            tmp_path / "humanevalpack/humanevalpack_js.jsonl",
            [humanevalpack(n) for n in range(164)][::order],
        )
        rows = read_rows(PAPER["humaneval"].search.sources[0], tmp_path)
        chosen.append({question.id for question in PAPER["humaneval"].search.questions(rows)})
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 33


# Prompts and scores


@pytest.fixture(scope="module")
def definitions() -> Path:
    lm_eval = importlib.util.find_spec("lm_eval")
    assert lm_eval is not None
    assert lm_eval.origin is not None
    return Path(lm_eval.origin).parent / "tasks"


@pytest.fixture(scope="module")
def rendered(definitions: Path) -> Callable[[str, str, dict[str, Any]], str]:
    """A field of a task of lm-evaluation-harness, filled in for a record."""
    from jinja2 import Environment, StrictUndefined

    env = Environment(undefined=StrictUndefined, keep_trailing_newline=True)  # as there

    def render(path: str, field: str, record: dict[str, Any]) -> str:
        text = (definitions / path).read_text().replace("!function", "")
        template = yaml.safe_load(text)[field]
        return str(env.from_string(template).render(**record))

    return render


Rendered = Callable[[str, str, dict[str, Any]], str]


def test_arc_asks_as_the_harness_does(data: Path, rendered: Rendered) -> None:
    for item in task_of("arc_challenge", data).items("report"):
        record = arc(int(item.id.removeprefix("Mercury_")))
        assert item.prompt == rendered("arc/arc_easy.yaml", "doc_to_text", record)
        choices = rendered("arc/arc_easy.yaml", "doc_to_choice", record)
        assert item.record["choices"] == ast.literal_eval(choices)
        answer = rendered("arc/arc_easy.yaml", "doc_to_target", record)
        assert item.record["answer"] == int(answer)


def test_mmlu_asks_as_the_harness_does(data: Path, rendered: Rendered) -> None:
    for number, item in enumerate(task_of("mmlu", data).items("report")):
        template = "mmlu/default/_default_template_yaml"
        head = rendered("mmlu/default/mmlu_elementary_mathematics.yaml", "description", {})
        assert item.prompt == head + rendered(template, "doc_to_text", mmlu(number))
        assert (item.record["choices"], item.record["answer"]) == (list("ABCD"), number % 4)


def test_gsm8k_asks_as_the_harness_does_after_the_first_examples(
    data: Path, rendered: Rendered
) -> None:
    ask = "gsm8k/gsm8k.yaml"
    examples = "".join(
        f"{rendered(ask, 'doc_to_text', gsm8k(n))} {gsm8k(n)['answer']}\n\n"
        for n in range(100, 105)
    )
    for item in task_of("gsm8k", data).items("report"):
        record = gsm8k(int(item.id.rpartition("/")[2]))
        assert item.prompt == examples + rendered(ask, "doc_to_text", record)


def test_winogrande_asks_as_the_harness_does(data: Path, definitions: Path) -> None:
    place = definitions / "winogrande" / "preprocess_winogrande.py"
    spec = importlib.util.spec_from_file_location("preprocess_winogrande", place)
    assert spec is not None
    assert spec.loader is not None
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    for item in task_of("winogrande", data).items("report"):
        record = winogrande(int(item.id.rpartition("/")[2]))
        assert item.record["prompts"] == harness.doc_to_choice(record)
        assert item.record["ending"] == harness.doc_to_target(record)
        assert item.record["answer"] == harness.doc_to_text(record)


def test_an_answer_is_right_with_or_without_commas_if_it_comes_first(data: Path) -> None:
    task = task_of("gsm8k", data)

    def answer(prompt: str, form: str) -> str:
        number = int(prompt.rpartition("Tom has ")[2].split()[0]) + 2000
        return f" So it is\n#### {form.format(number)}\n\nQuestion: #### 5"

    for form, value in (("{:,}", 1), ("{}.", 1), ("${}", 0), ("1{}", 0), ("{} #### 5", 1)):
        model = Knowing(lambda prompt, form=form: answer(prompt, form))
        assert task.evaluate(model, "report").mean == value


def test_code_runs_in_the_published_form_sampled_as_in_the_paper(data: Path) -> None:
    sandbox = probe(unsafe=True)
    solutions = {r["prompt"]: r["canonical_solution"] for r in map(humaneval, range(10))}
    model = Knowing(lambda prompt: f"{solutions[prompt]}\n\ndef more(:\n")
    scores = task_of("humaneval", data).evaluate(model, "report", sandbox=sandbox, part=[0, 3])
    assert scores.values == (1.0, 1.0)
    sampling = {name: model.settings[name] for name in ("temperature", "top_p")}
    assert sampling == {"temperature": 0.2, "top_p": 0.95}
    wrong = Knowing(lambda prompt: "    pass\n")
    scores = task_of("humaneval", data).evaluate(wrong, "report", sandbox=sandbox, part=[0, 3])
    assert scores.values == (0.0, 0.0)

    def add(prompt: str) -> str:
        number = int(prompt.partition("add ")[2].partition(".")[0])
        return f"def add(x):\n  return x + {number}\nassert add(0)"

    scores = task_of("mbpp", data).evaluate(Knowing(add), "search", sandbox=sandbox)
    assert scores.values == (1.0, 1.0)


@pytest.mark.parametrize(
    "more", ["const other = 1;", "let a;", "var b;", "module.exports = {", "function g() {"]
)
def test_a_completion_in_javascript_ends_where_the_next_thing_begins(more: str) -> None:
    own = "  const inner = 1;\n  let more = 2;\n  return inner + more;\n}\n"
    assert before_stop(f"{own}\n{more}", humanevalpack_suite.SETTINGS["stop"]) == own


def test_a_program_may_compute_as_long_as_its_task_says() -> None:
    """Longer than the time on the clock of a program of which nothing is said."""
    seen: list[Limits] = []

    class Watching:
        name = "watching"

        def run(self, programs: Any, *, limits: Limits, isolation: str = "batch") -> list[Outcome]:
            seen.append(limits)
            return [Outcome(True, "passed") for _ in programs]

    item = Item("1", "1", {"prompt": "x = ", "tests": "assert x"})
    settings = settings_of("code", {"seconds": 100})
    measured = kinds["code"]().score(Knowing(lambda _: "1"), [item], settings, Watching())
    assert measured.values == [1.0]
    assert [limits.seconds for limits in seen] == [100]
    assert seen[0].wall_seconds > 100


def test_multiple_choice_is_scored_by_the_papers_metric(data: Path) -> None:
    model = Knowing(str)
    arcs = task_of("arc_challenge", data).evaluate(model, "report")
    assert arcs.values == arcs.metrics["acc_norm"]
    letters = task_of("mmlu", data).evaluate(model, "report")
    assert letters.values == letters.metrics["acc"]
    schemas = task_of("winogrande", data).evaluate(model, "report", part=[1, 0])
    assert schemas.items == ("winogrande/1", "winogrande/0")


# Files


@pytest.mark.parametrize(
    "name", ["test.jsonl", "test.jsonl.gz", "main/test-00000-of-00002.parquet"]
)
def test_every_form_of_a_file_holds_the_same(name: str, tmp_path: Path) -> None:
    wanted = Published("some", "who/some", ("test.jsonl*", "main/test-*.parquet"))
    records = [gsm8k(n) for n in range(4)]
    if name.endswith(".parquet"):
        write(tmp_path / "some" / name, records[:2])
        write(tmp_path / "some" / name.replace("00000-of", "00001-of"), records[2:])
    else:
        write(tmp_path / "some" / name, records)
    rows = read_rows(wanted, tmp_path)
    assert [dict(row.record) for row in rows] == records
    assert [row.name for row in rows] == [f"some/{n}" for n in range(4)]


def test_the_original_form_of_arc_gives_the_same_items(data: Path, tmp_path: Path) -> None:
    def original(record: dict[str, Any]) -> dict[str, Any]:
        texts, labels = record["choices"]["text"], record["choices"]["label"]
        choices = [{"text": t, "label": n} for t, n in zip(texts, labels, strict=True)]
        return {**record, "question": {"stem": record["question"], "choices": choices}}

    write(tmp_path / "arc/ARC-Challenge-Test.jsonl", [original(arc(n)) for n in range(8)])
    write(tmp_path / FILES["arc/tiny"][0], FILES["arc/tiny"][1])
    ours, theirs = task_of("arc_challenge", tmp_path), task_of("arc_challenge", data)
    assert ours.items("report") == theirs.items("report")
    assert ours.digest() == theirs.digest()


def test_every_missing_file_is_named_with_its_place_and_its_source(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(TaskError) as caught:
        task_of("gsm8k", tmp_path).check()
    message = str(caught.value)
    assert "tinyGSM8k: there is no main/test-*.parquet or main/test.jsonl" in message
    assert f"in {tmp_path / 'tinyGSM8k'}, which is no folder" in message
    assert "gsm8k: there is no train.jsonl or main/train-*.parquet" in message
    assert f"in {tmp_path / 'gsm8k'};" in message
    for name in ("openai/gsm8k", "tinyBenchmarks/tinyGSM8k"):
        assert f"https://huggingface.co/datasets/{name}" in message


def test_all_tasks_of_a_suite_complain_at_once(tmp_path: Path) -> None:
    from modelglue.evaluate.task import check_tasks

    tasks, split = tasks_of([], suites=["paper-report"], data=tmp_path)
    assert split == "report"
    with pytest.raises(TaskError) as caught:
        check_tasks(tasks)
    for folder in ("arc", "winogrande", "mmlu", "gsm8k", "mbpp", "humaneval", "humanevalpack"):
        assert f"in {tmp_path / folder}" in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"question": "x"}, r"test\.jsonl:2: answer: is missing"),
        ({"question": "", "answer": "#### 1"}, r"test\.jsonl:2: question: must be text"),
        (["x"], r"test\.jsonl:2: must be an object"),
    ],
)
def test_a_record_in_another_form_is_named(broken: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "gsm8k/test.jsonl", [gsm8k(0), broken])
    write(tmp_path / "gsm8k/train.jsonl", [gsm8k(n) for n in range(5)])
    write(tmp_path / "tinyGSM8k/test.jsonl", [gsm8k(7)])
    with pytest.raises(TaskError, match=message):
        task_of("gsm8k", tmp_path).check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"test\.jsonl:1: is not JSON"),
        (b"", "holds no records"),
        (b"\xff\n", r"test\.jsonl: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    write(tmp_path / "gsm8k/train.jsonl", [gsm8k(n) for n in range(5)])
    write(tmp_path / "tinyGSM8k/test.jsonl", [gsm8k(7)])
    (tmp_path / "gsm8k/test.jsonl").write_bytes(content)
    with pytest.raises(TaskError, match=message):
        task_of("gsm8k", tmp_path).check()


def test_a_packed_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    good = gzip.compress("".join(json.dumps(humaneval(n)) + "\n" for n in range(99)).encode())
    write(tmp_path / "humanevalpack/humanevalpack_js.jsonl", [humanevalpack(n) for n in range(5)])
    place = tmp_path / "humaneval/HumanEval.jsonl.gz"
    place.parent.mkdir()
    for damaged in (good[:10] + b"\xff" * 40 + good[50:], good[:-20], b"x" + good):
        place.write_bytes(damaged)
        with pytest.raises(TaskError, match=r"HumanEval\.jsonl\.gz: cannot be read"):
            task_of("humaneval", tmp_path).check()


def test_a_problem_without_tests_is_named(tmp_path: Path) -> None:
    write(tmp_path / "mbpp/mbpp.jsonl", [mbpp_record(11), {**mbpp_record(511), "test_list": []}])
    with pytest.raises(TaskError, match=r"mbpp\.jsonl:2: test_list: is empty"):
        task_of("mbpp", tmp_path).check()


def test_wrong_answers_and_blanks_are_named(tmp_path: Path) -> None:
    write(tmp_path / "arc/ARC-Challenge/test.jsonl", [{**arc(0), "answerKey": "E"}])
    write(tmp_path / "tinyAI2_arc/test.jsonl", [{**arc(1), "answerKey": "1"}])
    with pytest.raises(TaskError, match=r"(?s)answerKey: must be one of A, B, C, not '1'.*'E'"):
        task_of("arc_challenge", tmp_path).check()
    write(tmp_path / "winogrande/dev.jsonl", [{**winogrande(0), "sentence": "No blank."}])
    write(tmp_path / "tinyWinogrande/validation.jsonl", [winogrande(1)])
    with pytest.raises(TaskError, match="sentence: has no blank"):
        task_of("winogrande", tmp_path).check()


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "arc/ARC-Challenge/test.jsonl", [arc(0), arc(1), arc(0)])
    write(tmp_path / "tinyAI2_arc/test.jsonl", [arc(5)])
    with pytest.raises(TaskError, match="1 ids stand twice, such as 'Mercury_0'"):
        task_of("arc_challenge", tmp_path).check()


def test_a_report_with_nothing_left_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "arc/ARC-Challenge/test.jsonl", [arc(0)])
    write(tmp_path / "tinyAI2_arc/test.jsonl", [arc(0)])
    with pytest.raises(TaskError, match="every report item stands in the search split"):
        task_of("arc_challenge", tmp_path).check()


def test_without_a_folder_the_files_come_from_the_hub(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, list[str]]] = []

    def fetch(repository: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((repository, repo_type, allow_patterns))
        return str(data / {"allenai/ai2_arc": "arc"}.get(repository, repository.split("/")[1]))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    task = SuiteTaskConfig("arc_challenge").open()
    assert task.items("report") == task_of("arc_challenge", data).items("report")
    assert [(name, sort) for name, sort, _ in asked] == [
        ("tinyBenchmarks/tinyAI2_arc", "dataset"),
        ("allenai/ai2_arc", "dataset"),
    ]
    assert all("ARC-Challenge/test-*.parquet" in patterns for *_, patterns in asked)


def test_without_a_network_the_hub_is_named_with_a_way_out() -> None:
    with pytest.raises(TaskError, match=r"cannot be fetched from https.*allenai/ai2_arc.* as data"):
        SuiteTaskConfig("arc_challenge").open().check()


# What a user names


def test_a_suite_is_six_tasks_and_its_own_split_is_scored(data: Path) -> None:
    tasks, split = tasks_of([], suites=["paper-proxy"], data=data)
    assert (split, [task.name for task in tasks]) == ("search", list(PAPER))
    tasks, split = tasks_of([], suites=["paper"], data=data)
    assert (split, len(tasks)) == ("report", 6)
    with pytest.raises(ConfigError, match="paper-proxy has no report items"):
        tasks_of([], suites=["paper-proxy"], data=data, split="report")
    with pytest.raises(ConfigError, match="name a task or a suite"):
        tasks_of([])


def test_names_that_are_none_are_refused_with_the_known_ones() -> None:
    problems: list[str] = []
    given = {"suite": "paper", "tasks": [["mmlu"], {"name": "arc"}, 5, "mbp"]}
    assert not parse_tasks([given], root=Path(), problems=problems)
    assert [problem.split("Known")[0] for problem in problems] == [
        "tasks[0].tasks: there is no ['mmlu']; did you mean \"mmlu\"?. ",
        "tasks[0].tasks: there is no {'name': 'arc'}. ",
        "tasks[0].tasks: there is no 5. ",
        "tasks[0].tasks: there is no 'mbp'; did you mean \"mbpp\"?. ",
    ]


def test_a_task_of_the_harness_is_named_on_the_command_line_and_taken_whole() -> None:
    (task,), split = tasks_of(["harness:arc_easy"])
    assert (task.kind, split) == ("harness:arc_easy", "report")
    assert task.config.search_share == 0  # type: ignore[attr-defined]
    (task,), _ = tasks_of(["harness:arc_easy"], split="search")
    assert task.config.search_share == 1  # type: ignore[attr-defined]
