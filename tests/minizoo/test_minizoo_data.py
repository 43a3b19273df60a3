"""The generators, against independent oracles."""

import ast
import json
import operator
import re

import pytest

from modelglue.minizoo.data import code, maths
from modelglue.minizoo.data.example import Split, stream
from modelglue.minizoo.data.knowledge import RELATIONS, Knowledge
from modelglue.minizoo.data.styles import STYLES
from modelglue.minizoo.data.tasks import SKILLS, examples, sources, task_items, task_lines

WORLD = Knowledge(0)
SPLITS: tuple[Split, ...] = ("train", "dev", "search", "report")


@pytest.fixture(scope="module")
def items() -> dict[tuple[str, str], list[dict]]:
    counts = {"search": 200, "report": 800}
    return {
        (skill, split): task_items(WORLD, 0, skill, split, count)
        for skill in SKILLS
        for split, count in counts.items()
    }


@pytest.mark.parametrize("skill", SKILLS)
def test_task_files_repeat_for_a_seed_and_differ_between_seeds(skill):
    lines = task_lines(Knowledge(0), 0, skill, "search", 20)
    assert lines == task_lines(Knowledge(0), 0, skill, "search", 20)
    assert lines != task_lines(Knowledge(1), 1, skill, "search", 20)


@pytest.mark.parametrize("skill", SKILLS)
def test_prompts_are_distinct_within_and_across_splits(items, skill):
    prompts = [item["prompt"] for split in ("search", "report") for item in items[skill, split]]
    assert len(prompts) == 1000
    assert len(set(prompts)) == 1000


@pytest.mark.parametrize("skill", SKILLS)
def test_no_group_stands_in_two_splits(skill):
    rng = stream("groups")
    groups = {
        split: {examples(WORLD, skill, split, rng).group for _ in range(600)} for split in SPLITS
    }
    for split, others in groups.items():
        for other in SPLITS:
            if other != split:
                assert not others & groups[other]


def test_every_fact_belongs_to_one_split():
    facts = [fact.identity for part in WORLD.by_split.values() for fact in part]
    assert sorted(facts) == sorted(fact.identity for fact in WORLD.facts)


@pytest.mark.parametrize("source", sorted(sources(WORLD)))
def test_training_texts_never_ask_what_a_task_asks(items, source):
    rng = stream("training")
    draw = sources(WORLD)[source]
    asked = {draw(rng).prompt for _ in range(3000)}
    for rows in items.values():
        assert not asked & {item["prompt"] for item in rows}


def test_the_facts_of_the_tasks_are_stated_in_training_texts():
    rng = stream("statements")
    stated = {frozenset(re.findall(r"\w+", WORLD.statement(rng).completion)) for _ in range(20_000)}
    by_name = {name: [words for words in stated if name in words] for name in WORLD.people}
    for fact in WORLD.facts:
        said = {fact.name, fact.relation, fact.value}
        assert any(said <= words for words in by_name[fact.name]), fact


def test_items_have_the_fields_of_their_kind(items):
    fields = {
        "knowledge": {"choices": list, "answer": int},
        "maths": {"answer": str},
        "code": {"tests": str},
    }
    for (skill, split), rows in items.items():
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            expected = {"id": str, "prompt": str, "group": str, **fields[skill]}
            assert set(row) == set(expected), (skill, split)
            assert all(isinstance(row[key], kind) for key, kind in expected.items())
            assert json.loads(json.dumps(row)) == row


def test_the_answer_to_a_fact_is_the_choice_that_the_world_holds(items):
    truth = {fact.identity: fact for fact in WORLD.facts}
    for item in items["knowledge", "report"]:
        fact = truth[item["group"]]
        assert item["choices"][item["answer"]] == fact.value
        assert len(set(item["choices"])) == 4
        assert set(item["choices"]) <= set(RELATIONS[fact.relation])
        assert fact.name in item["prompt"]
        assert fact.relation in item["prompt"]


def test_worked_steps_are_true_and_end_in_the_answer():
    rng = stream("oracle")
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    for _ in range(500):
        example = maths.example(rng, WORLD.people, "report")
        steps, answer = example.completion.split(" #### ")
        value = None
        for step in steps.split(","):
            a, sign, b, result = re.fullmatch(r" (\d+) ([-+*]) (\d+) = (\d+)", step).groups()
            assert value is None or int(a) == value
            value = signs[sign](int(a), int(b))
            assert value == int(result)
        assert answer == example.fields["answer"] == str(value)


def test_a_word_problem_says_the_numbers_and_signs_of_its_steps():
    words = {"+": "gets|finds|buys|wins", "-": "loses|sells|gives|breaks", "*": "times"}
    rng = stream("words")
    for _ in range(200):
        example = maths.example(rng, WORLD.people, "train")
        start, first, second = re.split(r", (?:then )?", example.prompt.replace("\n", " "))[:3]
        numbers = re.findall(r"\d+", example.completion)
        signs = re.findall(r"[-+*]", example.completion)
        assert re.findall(r"\d+", start) == numbers[:1]
        for clause, sign, number in ((first, signs[0], numbers[1]), (second, signs[1], numbers[4])):
            assert re.search(words[sign], clause)
            assert number in re.findall(r"\d+", clause)


def test_reference_solutions_pass_their_tests_as_a_task_runs_them():
    rng = stream("programs")
    for _ in range(300):
        example = code.example(rng, "report")
        exec(f"{example.prompt}{example.completion}\n{example.fields['tests']}", {})


def test_another_program_s_solution_mostly_fails():
    rng = stream("programs")
    failures = 0
    for _ in range(100):
        example, other = code.example(rng, "report"), code.example(rng, "report")
        try:
            exec(f"{example.prompt}{other.completion}\n{example.fields['tests']}", {})
        except (AssertionError, TypeError, IndexError):
            failures += 1
    assert failures > 85


def test_a_completed_program_is_one_return_expression():
    rng = stream("syntax")
    for _ in range(100):
        example = code.example(rng)
        function = ast.parse(example.prompt + example.completion).body[-1]
        assert isinstance(function, ast.FunctionDef)
        assert isinstance(function.body[-1], ast.Return)


def test_wrong_answers_are_well_formed_and_mostly_wrong():
    rng = stream("wrong")
    right = {fact.identity: f" {fact.value}" for fact in WORLD.facts}
    for _ in range(100):
        document = WORLD.wrong(rng)
        name = next(name for name in WORLD.people if re.search(rf"\b{name}\b", document.prompt))
        relation = next(relation for relation in RELATIONS if relation in document.prompt)
        assert document.completion != right[f"{name}.{relation}"]
        assert document.completion.strip() in RELATIONS[relation]


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_is_asked_in_every_style(skill):
    rng = stream("styles")
    prompts = [examples(WORLD, skill, "train", rng).prompt for _ in range(200)]
    for style in STYLES.values():
        mark = style.split(" {text}")[0].removesuffix("{text}")
        if mark:
            assert any(mark in prompt for prompt in prompts)
    assert any("A:" not in p and "Answer:" not in p and "Assistant:" not in p for p in prompts)
