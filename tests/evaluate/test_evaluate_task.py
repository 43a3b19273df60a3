import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelglue.errors import ConfigError, SandboxUnavailable, TaskError
from modelglue.evaluate.file_task import FileTask, file_task_problems
from modelglue.evaluate.model import Likelihood
from modelglue.evaluate.sandbox import Outcome, Program
from modelglue.evaluate.scoring import evaluate
from modelglue.evaluate.task import check_tasks
from modelglue.evaluate.task_config import parse_tasks

GOOD: dict[str, dict[str, Any]] = {
    "multiple_choice": {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1},
    "multiple_input": {"prompts": ["2 + 1", "2 + 2"], "ending": "is four", "answer": 1},
    "generate": {"prompt": "2 + 2 =", "answer": "4"},
    "code": {"prompt": "def four():", "tests": "assert four() == 4"},
    "text": {"text": "two and two", "reference": "make four"},
}


class Scripted:
    """Answers from a table; a choice's log-likelihood is minus the place of its text in `order`."""

    parameters_stored = parameters_active = 0

    def __init__(self, answers: dict[str, str] | None = None, order: tuple[str, ...] = ()) -> None:
        self.answers = answers or {}
        self.order = order

    def loglikelihoods(self, contexts: Any, continuations: Any) -> list[list[Likelihood]]:
        return [
            [
                Likelihood(-1.0 - self.order.index(text), 1, len(text.encode()), False)
                for text in texts
            ]
            for texts in continuations
        ]

    def generate(self, prompts: Any, **_: Any) -> list[str]:
        return [self.answers[prompt] for prompt in prompts]


class Trusting:
    """Runs a program here, so that a test sees what it does and how it was asked."""

    name = "trusting"

    def __init__(self) -> None:
        self.isolation: list[str] = []

    def run(self, programs: Any, *, isolation: str = "batch", **_: Any) -> list[Outcome]:
        self.isolation.append(isolation)
        return [self._run(program) for program in programs]

    def _run(self, program: Program) -> Outcome:
        try:
            exec(program.source, {})
        except Exception as error:  # noqa: BLE001 (whatever the program does)
            return Outcome(False, "failed", str(error))
        return Outcome(True, "passed", "")


def task_of(
    folder: Path,
    kind: str,
    search: list[dict[str, Any]] | str,
    report: list[dict[str, Any]] | str | None = None,
    **settings: Any,
) -> FileTask:
    splits = {"search": search} if report is None else {"search": search, "report": report}
    for split, items in splits.items():
        text = items if isinstance(items, str) else "".join(json.dumps(i) + "\n" for i in items)
        (folder / f"{split}.jsonl").write_text(text)
    mapping = {"name": "t", "kind": kind, **settings, **{s: f"{s}.jsonl" for s in splits}}
    return FileTask.from_mapping(mapping, root=folder, splits=list(splits))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_a_good_item_of_each_kind_is_taken(kind: str, tmp_path: Path) -> None:
    task = task_of(tmp_path, kind, [{"id": 7, **GOOD[kind], "unknown": None}])
    task.check()
    (item,) = task.items("search")
    assert (item.id, item.group) == ("7", "7")


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind in sorted(GOOD) for field in GOOD[kind] if field != "text"],
)
def test_a_missing_field_is_named_with_file_and_line(kind: str, field: str, tmp_path: Path) -> None:
    broken = {name: value for name, value in GOOD[kind].items() if name != field}
    task = task_of(tmp_path, kind, [{"id": "a", **GOOD[kind]}, {"id": "b", **broken}])
    with pytest.raises(TaskError, match=rf"search\.jsonl:2: {field}: is missing"):
        task.items("search")


def test_nothing_needs_to_come_before_a_reference(tmp_path: Path) -> None:
    task_of(tmp_path, "text", [{"id": 1, "reference": "make four"}]).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "answer: 2 is no index of 2 choices"),
        ({"answer": -1}, "answer: -1 is no index"),
        ({"answer": True}, "answer: must be the index of a choice, not True"),
        ({"answer": "1"}, "answer: must be the index of a choice, not '1'"),
        ({"choices": ["4"]}, "choices: must be a list of at least two texts"),
        ({"choices": ["4", 5]}, "choices: must all be text"),
        ({"choices": ["4", "4"]}, "choices: two of them are the same"),
        ({"prompt": ""}, "prompt: is empty"),
        ({"prompt": 5}, "prompt: must be text, not 5"),
        ({"id": None}, "id: is missing"),
        ({"id": 1.5}, "id: must be text or a whole number, not 1.5"),
        ({"group": ["x"]}, "group: must be text or a whole number"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    task = task_of(tmp_path, "multiple_choice", [{"id": "a", **GOOD["multiple_choice"], **change}])
    with pytest.raises(TaskError, match=f"search.jsonl:1: {message}"):
        task.items("search")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1', "1: is not JSON: .* at column"),
        ("[1]", "1: must be an object"),
        ("[" * 100_000, "1: is not JSON"),
        ('{"id": 1, "prompt": "\\ud800", "answer": "4"}', "1: holds half of a surrogate pair"),
        ("\n \n", " holds no items"),
        ("", " holds no items"),
    ],
)
def test_a_line_that_is_no_item_is_refused(line: str, message: str, tmp_path: Path) -> None:
    task = task_of(tmp_path, "generate", line)
    with pytest.raises(TaskError, match=rf"search\.jsonl:{message}"):
        task.items("search")


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, "generate", [{"id": 1, **GOOD["generate"]}])
    (tmp_path / "search.jsonl").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(TaskError, match=r"search\.jsonl: byte 8 is not UTF-8"):
        task.items("search")


def test_a_missing_file_is_refused_with_its_nearest_sibling(tmp_path: Path) -> None:
    task = task_of(tmp_path, "generate", [{"id": 1, **GOOD["generate"]}])
    (tmp_path / "search.jsonl").rename(tmp_path / "seach.jsonl")
    with pytest.raises(TaskError, match=r'no such file; did you mean "seach\.jsonl"'):
        task.check()


def test_a_second_item_of_the_same_id_is_refused(tmp_path: Path) -> None:
    item = {"id": 1, **GOOD["generate"]}
    task = task_of(tmp_path, "generate", [item, {**item, "id": "1", "prompt": "else"}])
    with pytest.raises(TaskError, match=r"search\.jsonl:2: id: '1' is also the id of line 1"):
        task.items("search")


@pytest.mark.parametrize(
    ("other", "aspect"),
    [
        ({"id": "a", "prompt": "new"}, "id"),
        ({"id": "b", "prompt": "old"}, "question"),
        ({"id": "b", "prompt": "new", "group": "fact"}, "group"),
    ],
)
def test_what_stands_in_both_splits_is_refused(
    other: dict[str, str], aspect: str, tmp_path: Path
) -> None:
    first = {"id": "a", "prompt": "old", "answer": "4", "group": "fact"}
    task = task_of(tmp_path, "generate", [first], [{"answer": "4", **other}])
    with pytest.raises(TaskError, match=rf"report\.jsonl:1: {aspect}: .*search\.jsonl:1"):
        task.check()


def test_the_same_prompt_with_another_right_choice_is_another_question(tmp_path: Path) -> None:
    first = {"id": "a", "prompt": "Which is true?", "choices": ["x", "y"], "answer": 0}
    second = {"id": "b", "prompt": "Which is true?", "choices": ["u", "v"], "answer": 0}
    task_of(tmp_path, "multiple_choice", [first], [second]).check()
    shuffled = {**first, "id": "c", "choices": ["z", "x"], "answer": 1}
    with pytest.raises(TaskError, match="question"):
        task_of(tmp_path, "multiple_choice", [first], [shuffled]).check()


def test_all_problems_of_both_files_come_at_once(tmp_path: Path) -> None:
    task = task_of(tmp_path, "generate", [{"id": 1}], [{"id": 2, "prompt": "x"}, {}])
    with pytest.raises(TaskError) as caught:
        task.check()
    for part in (
        "6 problems",
        "search.jsonl:1: prompt",
        "search.jsonl:1: answer",
        "report.jsonl:1: answer",
        "report.jsonl:2: id",
    ):
        assert part in str(caught.value)


def test_a_configuration_is_refused_with_everything_that_is_wrong() -> None:
    problems = file_task_problems(
        {
            "name": "maths",
            "kind": "generate",
            "max_new_token": 4,
            "top_p": 0,
            "temperature": "hot",
            "extract": "(",
            "stop": [""],
            "search": "s.jsonl",
        },
        "tasks[0]",
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "tasks[0].report",
        "tasks[0].max_new_token",
        "tasks[0].top_p",
        "tasks[0].temperature",
        "tasks[0].extract",
        "tasks[0].stop",
    ]
    assert 'did you mean "max_new_tokens"?' in problems[1]
    assert "must be a number above 0 and of at most 1, not 0" in problems[2]


def test_an_unknown_kind_is_refused_with_the_nearest_one() -> None:
    (problem,) = file_task_problems(
        {"name": "t", "kind": "multiple_choise", "search": "s", "report": "r"}, "tasks[1]"
    )
    assert problem.startswith("tasks[1].kind: ")
    assert 'did you mean "multiple_choice"?' in problem


@pytest.mark.parametrize("mapping", [None, [], "x", {"kind": []}, {"name": 3, "kind": 4}])
def test_whatever_stands_for_a_task_gets_problems_and_no_crash(mapping: Any) -> None:
    assert file_task_problems(mapping)
    with pytest.raises(ConfigError):
        FileTask.from_mapping(mapping, root=Path())


def test_a_setting_of_another_kind_is_unknown() -> None:
    mapping = {"name": "t", "kind": "text", "search": "s", "report": "r", "extract": "x"}
    (problem,) = file_task_problems(mapping)
    assert "no text task knows this key" in problem


def test_defaults_are_filled_in_and_one_stop_is_a_list(tmp_path: Path) -> None:
    task = task_of(tmp_path, "code", [{"id": 1, **GOOD["code"]}], stop="\n\n")
    assert task.config.settings == {
        "language": "python",
        "seconds": 5.0,
        "max_new_tokens": 128,
        "stop": ("\n\n",),
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
    }
    again = FileTask.from_mapping(task.config.to_mapping(), root=tmp_path, splits=["search"])
    assert again.config == task.config


def test_acc_takes_the_likeliest_choice_and_acc_norm_the_likeliest_by_length(
    tmp_path: Path,
) -> None:
    """ " four" has −1 and 4 characters, " a lot more" −2 and 10."""
    item = {"id": 1, "prompt": "2 + 2 =", "choices": ["four", "a lot more"], "answer": 0}
    task = task_of(tmp_path, "multiple_choice", [item])
    found = task.evaluate(Scripted(order=(" four", " a lot more")), "search")
    assert found.metrics == {"acc": (1.0,), "acc_norm": (0.0,)}
    assert found.values == (0.0,)
    by_acc = task_of(tmp_path, "multiple_choice", [item], metric="acc")
    assert by_acc.evaluate(Scripted(order=(" four", " a lot more")), "search").values == (1.0,)


@pytest.mark.parametrize(
    ("prompt", "choice", "expected"),
    [("A:", "x", " x"), ("A: ", "x", "x"), ("A:\n", "x", "x"), ("A:", " x", " x")],
)
def test_a_choice_is_parted_from_its_prompt_by_one_space(
    prompt: str, choice: str, expected: str, tmp_path: Path
) -> None:
    item = {"id": 1, "prompt": prompt, "choices": [choice, choice + "y"], "answer": 0}
    task = task_of(tmp_path, "multiple_choice", [item])
    assert task.evaluate(Scripted(order=(expected, expected + "y")), "search").values == (1.0,)


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("so #### 4", 1.0),
        ("#### 5, no:\n####  4\nyes", 1.0),
        ("#### 4 or #### 5", 0.0),
        ("the answer is 4", 0.0),
        ("#### 5\nQ: #### 4", 0.0),
        ("", 0.0),
    ],
)
def test_the_last_match_of_the_pattern_is_the_answer(
    completion: str, value: float, tmp_path: Path
) -> None:
    items = [
        {"id": 1, "prompt": "p", "answer": "4"},
        {"id": 2, "prompt": "p", "answer": "2 + 2 = 4 #### 4"},
    ]
    task = task_of(tmp_path, "generate", items, extract="#### *([0-9]+)", stop=["Q:"])
    assert task.evaluate(Scripted({"p": completion}), "search").values == (value, value)


def test_without_a_pattern_the_whole_completion_is_the_answer(tmp_path: Path) -> None:
    items = [{"id": 1, "prompt": "p", "answer": "a  b"}, {"id": 2, "prompt": "q", "answer": "a"}]
    task = task_of(tmp_path, "generate", items)
    assert task.evaluate(Scripted({"p": " a\nb ", "q": "a b"}), "search").values == (1.0, 0.0)


def test_code_passes_if_prompt_completion_and_tests_run_to_the_end(tmp_path: Path) -> None:
    items = [{"id": n, "prompt": f"def f{n}():", "tests": f"assert f{n}() == 4"} for n in range(3)]
    answers = {
        "def f0():": " return 4",
        "def f1():": " return 5",
        "def f2():": " return 4\n\nraise ValueError",
    }
    task = task_of(tmp_path, "code", items, stop=["\n\n"])
    found = task.evaluate(Scripted(answers), "search", sandbox=Trusting())
    assert found.values == (1.0, 0.0, 1.0)
    with pytest.raises(SandboxUnavailable, match="none was given"):
        task.evaluate(Scripted(answers), "search")


def test_programs_share_a_sandbox_in_a_search_and_have_one_each_in_the_report(
    tmp_path: Path,
) -> None:
    def item(name: str) -> dict[str, str]:
        return {"id": name, "prompt": f"def {name}():", "tests": f"assert {name}() == 4"}

    task = task_of(tmp_path, "code", [item("a")], [item("b")])
    sandbox = Trusting()
    model = Scripted({"def a():": " return 4", "def b():": " return 4"})
    assert task.evaluate(model, "search", sandbox=sandbox).mean == 1
    assert task.evaluate(model, "report", sandbox=sandbox).mean == 1
    assert sandbox.isolation == ["batch", "program"]


def test_the_beginning_after_which_the_ending_is_likeliest_is_the_answer(tmp_path: Path) -> None:
    class Counting(Scripted):
        """An ending is the likelier, the shorter what comes before it."""

        def loglikelihoods(self, contexts: Any, continuations: Any) -> list[list[Likelihood]]:
            assert continuations == [[" is big."]] * 4
            return [[Likelihood(-float(len(context)), 1, 1, False)] for context in contexts]

    items = [
        {"id": 1, "prompts": ["The trophy", "The box"], "ending": "is big.", "answer": 1},
        {"id": 2, "prompts": ["A cup", "The table"], "ending": "is big.", "answer": 1},
    ]
    found = task_of(tmp_path, "multiple_input", items).evaluate(Counting(), "search")
    assert found.values == found.metrics["acc"] == (1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "answer: 2 is no index of 2 prompts"),
        ({"answer": "1"}, "answer: must be the index of a prompt, not '1'"),
        ({"prompts": ["only"]}, "prompts: must be a list of at least two texts"),
        ({"prompts": ["a", ""]}, "prompts: must all be text"),
        ({"ending": ""}, "ending: is empty"),
    ],
)
def test_a_wrong_field_of_several_prompts_is_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    task = task_of(tmp_path, "multiple_input", [{"id": "a", **GOOD["multiple_input"], **change}])
    with pytest.raises(TaskError, match=f"search.jsonl:1: {message}"):
        task.check()


def test_what_is_ignored_in_an_answer_is_left_out_on_both_sides(tmp_path: Path) -> None:
    items = [{"id": n, "prompt": f"p{n}", "answer": "#### 1,200"} for n in range(3)]
    task = task_of(tmp_path, "generate", items, extract="#### *([0-9$,.]+)", ignore=r"[,$]|\.$")
    model = Scripted({"p0": "#### 1200", "p1": "#### $1,200.", "p2": "#### 120"})
    assert task.evaluate(model, "search").values == (1.0, 1.0, 0.0)


def test_a_text_scores_the_mean_probability_of_its_bytes(tmp_path: Path) -> None:
    task = task_of(tmp_path, "text", [{"id": 1, "text": "Hi.", "reference": "né"}])
    found = task.evaluate(Scripted(order=("", " né")), "search")
    assert found.metrics["nll"] == (pytest.approx(2 / 3),)
    assert found.values == (pytest.approx(0.513417),)


def test_groups_and_ids_come_with_the_scores(tmp_path: Path) -> None:
    items = [
        {"id": "a", "prompt": "p", "answer": "4", "group": "g"},
        {"id": "b", "prompt": "q", "answer": "5", "group": "g"},
    ]
    seen: list[tuple[str, int, int]] = []
    scores = evaluate(
        Scripted({"p": "4", "q": "4"}),
        [task_of(tmp_path, "generate", items)],
        "search",
        progress=lambda *now: seen.append(now),
    )
    assert scores["t"].items == ("a", "b")
    assert scores["t"].groups == ("g", "g")
    assert scores.by_task() == {"t": 0.5}
    assert seen == [("t", 0, 1)]


def test_a_part_of_a_split_is_scored_alone_and_in_the_order_that_was_asked(
    tmp_path: Path,
) -> None:
    items = [
        {"id": f"i{n}", "prompt": f"p{n}", "answer": "x", "group": f"g{n // 2}"} for n in range(5)
    ]
    task = task_of(tmp_path, "generate", items)
    asked: list[str] = []

    class Listening(Scripted):
        def generate(self, prompts: Any, **_: Any) -> list[str]:
            asked.extend(prompts)
            return ["x" if prompt in ("p1", "p4") else "y" for prompt in prompts]

    whole = task.evaluate(Listening(), "search")
    asked.clear()
    part = task.evaluate(Listening(), "search", part=[4, 0, 1])
    assert asked == ["p4", "p0", "p1"]
    assert part.items == ("i4", "i0", "i1")
    assert part.groups == ("g2", "g0", "g0")
    assert part.values == tuple(whole.values[i] for i in (4, 0, 1)) == (1.0, 0.0, 1.0)


def test_a_digest_follows_the_files(tmp_path: Path) -> None:
    item = {"id": 1, **GOOD["generate"]}
    task = task_of(tmp_path, "generate", [item])
    before = task.digest()
    assert task_of(tmp_path, "generate", [item]).digest() == before
    (tmp_path / "search.jsonl").write_text(json.dumps({**item, "answer": "5"}))
    assert task.digest() != before


def test_all_tasks_are_checked_before_any_complains(tmp_path: Path) -> None:
    tasks = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tasks.append(task_of(tmp_path / name, "generate", []))
    with pytest.raises(TaskError, match=r"(?s)one/search\.jsonl: holds no.*two/search\.jsonl"):
        check_tasks(tasks)


def test_tasks_of_every_sort_stand_in_one_list(tmp_path: Path) -> None:
    problems: list[str] = []
    value = [
        {"name": "a", "kind": "text", "search": "s", "report": "r"},
        "harness:arc_easy",
        {"harness": "my_task", "name": "mine", "include": "defs", "shots": 5, "limit": 20},
        {"suite": "paper", "data": "files", "tasks": ["mmlu", "mbpp"]},
    ]
    configs = parse_tasks(value, root=tmp_path, problems=problems)
    assert not problems
    assert [config.name for config in configs] == ["a", "arc_easy", "mine", "mmlu", "mbpp"]
    again = parse_tasks([c.to_mapping() for c in configs], root=Path("/x"), problems=problems)
    assert not problems
    assert again == configs
    assert [config.open().name for config in configs] == [config.name for config in configs]
    assert [config.open().runs_code for config in configs] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("arc_easy", "tasks[0]: must be harness:NAME or a mapping, not 'arc_easy'"),
        (3, "tasks[0]: must be a mapping"),
        ({"harness": ""}, "tasks[0].harness: must be text"),
        (
            {"harness": "a", "shot": 5},
            'shot: no harness task knows this key; did you mean "shots"?',
        ),
        ({"harness": "a", "shots": -1}, "tasks[0].shots: must be a whole number of at least 0"),
        ({"harness": "a", "limit": 0}, "tasks[0].limit: must be a whole number of at least 1"),
        ({"harness": "a", "search_share": 0}, "search_share: 0 leaves the search no items"),
        ({"harness": "a", "search_share": 2}, "search_share: must be a number from 0 to 1"),
        ({"harness": "a", "search_split": "dev"}, "given together or not at all"),
        (
            {"harness": "a", "search_split": "dev", "report_split": "dev"},
            "report_split: is the search split",
        ),
        ({"suite": "papre"}, "tasks[0].suite: there is no 'papre'; did you mean \"paper\"?"),
        ({"suite": "paper-report"}, "paper-report has no search items; paper has both"),
        ({"suite": "paper", "tasks": ["mmul"]}, "there is no 'mmul'; did you mean \"mmlu\"?"),
        ({"suite": "paper", "tasks": []}, "tasks[0].tasks: must be a list of arc_challenge"),
        ({"suite": "paper", "dta": "x"}, 'no suite knows this key; did you mean "data"?'),
    ],
)
def test_what_is_wrong_with_a_task_is_named_with_its_place(value: Any, message: str) -> None:
    problems: list[str] = []
    assert not parse_tasks([value], root=Path(), problems=problems)
    (problem,) = problems
    assert message in problem


def test_two_tasks_of_one_name_are_refused() -> None:
    problems: list[str] = []
    parse_tasks(["harness:a", {"harness": "b", "name": "a"}], root=Path(), problems=problems)
    assert problems == ["tasks: 2 are called 'a'"]


def test_describing_a_task_loads_no_torch() -> None:
    code = (
        "import sys, modelglue.evaluate.task_config\n"
        "from modelglue.evaluate.kinds import kinds\n"
        "list(kinds); print({'torch', 'lm_eval', 'pyarrow'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
