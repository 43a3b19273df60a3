"""Tasks of lm-evaluation-harness against the harness itself, on local files, without a network."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelglue.errors import TaskError
from modelglue.evaluate.harness.task import HarnessConfig, HarnessTask
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.model import LanguageModel
from modelglue.evaluate.scores import TaskScores

COLOURS = ["red", "green", "dark blue", "yellow", "light grey"]


def write_lines(path: Path, documents: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


def define(folder: Path, name: str, files: dict[str, str], **definition: Any) -> None:
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **definition,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))


def mean_of(*names: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"metric": name, "aggregation": "mean", "higher_is_better": True, **more} for name in names
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Any:
    return HuggingFaceModel.load(make_model(tmp_path_factory.mktemp("model") / "m", seed=3))


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory, model: HuggingFaceModel) -> Path:
    """Definitions and data of four tasks and a group."""
    folder = tmp_path_factory.mktemp("tasks")
    asked = [
        {
            "id": n,
            "question": f"Which colour has number {n}?",
            "options": [COLOURS[(n + k) % 5] for k in range(3)],
            "gold": n % 3,
        }
        for n in range(40)
    ]
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "gold",
        "fewshot_split": "train",
        "metric_list": mean_of("acc", "acc_norm"),
    }
    for name, part in (("colours", asked[:24]), ("shades", asked[24:36])):
        files = {
            "test": write_lines(folder / f"{name}.test.jsonl", part),
            "train": write_lines(folder / f"{name}.train.jsonl", asked[36:]),
            "dev": write_lines(folder / f"{name}.dev.jsonl", [*asked[30:34], asked[0]]),
        }
        define(folder, name, files, **choice)
    members = {"group": "both", "task": ["colours", "shades"]}
    (folder / "both.yaml").write_text(yaml.safe_dump(members))

    prompts = [f"Say {n}:" for n in range(12)]
    written = model.generate(prompts, max_new_tokens=8, stop=["e"])
    said = [
        {"prompt": prompt, "target": text if n % 2 else "nothing"}
        for n, (prompt, text) in enumerate(zip(prompts, written, strict=True))
    ]
    define(
        folder,
        "saying",
        {"test": write_lines(folder / "saying.jsonl", said)},
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{target}}",
        generation_kwargs={"until": ["e"], "max_gen_toks": 8, "do_sample": False},
        filter_list=[
            {"name": "first", "filter": [{"function": "take_first"}]},
            {
                "name": "letters",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z]+)"},
                    {"function": "take_first"},
                ],
            },
        ],
        metric_list=mean_of("exact_match", ignore_case=False),
    )
    define(
        folder,
        "reading",
        {"test": write_lines(folder / "reading.jsonl", [{"text": p * 2} for p in prompts])},
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {"metric": name, "aggregation": "weighted_perplexity", "higher_is_better": False}
            for name in ("word_perplexity", "byte_perplexity")
        ],
    )
    return folder


def task_of(definitions: Path, harness: str, **settings: Any) -> HarnessTask:
    return HarnessConfig(harness, harness, include=definitions, **settings).open()


def by_harness(
    model: HuggingFaceModel, definitions: Path, name: str, shots: int = 0
) -> list[dict[str, Any]]:
    """What the harness's own model gives, item by item."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_path=str(definitions), include_defaults=False).load(name)
    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", shots)
        task.set_fewshot_seed(1234)
    own = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=4)
    found = evaluator.evaluate(own, loaded, bootstrap_iters=0, log_samples=True)
    return [{**s, "task": task} for task, rows in found["samples"].items() for s in rows]


def whole(task: HarnessTask, model: LanguageModel) -> dict[str, dict[str, float]]:
    """Every number of every item of both splits, by id."""
    found = {}
    for split in ("search", "report"):
        scores = task.evaluate(model, split)
        for index, item in enumerate(scores.items):
            found[item] = {name: column[index] for name, column in scores.metrics.items()}
            found[item]["value"] = scores.values[index]
    return found


@pytest.mark.filterwarnings("ignore")  # the harness's own
@pytest.mark.parametrize("shots", [0, 3])
def test_multiple_choice_agrees_with_the_harness_item_by_item(
    shots: int, model: HuggingFaceModel, definitions: Path
) -> None:
    ours = whole(task_of(definitions, "colours", shots=shots), model)
    theirs = by_harness(model, definitions, "colours", shots)
    assert len(theirs) == len(ours) == 24
    for sample in theirs:
        own = ours[str(sample["doc_id"])]
        assert own["acc"] == sample["acc"]
        assert own["acc_norm"] == own["value"] == sample["acc_norm"]
    assert 0 < sum(sample["acc_norm"] for sample in theirs) < 24
    assert any(sample["acc_norm"] != sample["acc"] for sample in theirs)


@pytest.mark.filterwarnings("ignore")
def test_generation_agrees_with_the_harness_item_by_item(
    model: HuggingFaceModel, definitions: Path
) -> None:
    ours = whole(task_of(definitions, "saying"), model)
    theirs = by_harness(model, definitions, "saying")
    assert len(theirs) == 2 * len(ours) == 24
    for sample in theirs:
        own = ours[str(sample["doc_id"])]
        assert own[f"exact_match,{sample['filter']}"] == sample["exact_match"]
    assert all(own["value"] == own["exact_match,first"] for own in ours.values())
    assert 0 < sum(own["value"] for own in ours.values()) < len(ours)


@pytest.mark.filterwarnings("ignore")
def test_the_harness_itself_runs_on_our_model_and_finds_the_same(
    model: HuggingFaceModel, definitions: Path
) -> None:
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from modelglue.evaluate.harness.model import HarnessModel

    loaded = TaskManager(include_path=str(definitions), include_defaults=False).load("reading")
    found = evaluator.evaluate(HarnessModel(model), loaded, bootstrap_iters=0, log_samples=True)
    theirs = by_harness(model, definitions, "reading")
    for ours, own in zip(found["samples"]["reading"], theirs, strict=True):
        assert ours["byte_perplexity"] == pytest.approx(own["byte_perplexity"], abs=1e-4)
    scores = task_of(definitions, "reading", metric="byte_perplexity", search_share=0)
    measured = scores.evaluate(model, "report")
    expected = [own["byte_perplexity"][0] / own["byte_perplexity"][1] for own in theirs]
    assert measured.values == pytest.approx(expected, abs=1e-5)
    assert max(measured.values) < 0  # a log-likelihood: better is more


def test_a_mixture_is_scored_as_the_experts_that_it_asks(
    model: HuggingFaceModel,
    definitions: Path,
    make_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    from modelglue.mixture.bundle import Bundle
    from modelglue.mixture.mix import mix

    folder = make_model(tmp_path / "other", seed=4)
    other = HuggingFaceModel.load(folder)
    folders = {"model": make_model(tmp_path / "model", seed=3), "other": folder}
    choosing = [f"Q: Which colour has number {n}?\nA:" for n in range(50, 60)]
    speaking = [f"Say {n}:" for n in range(50, 60)]
    task = task_of(definitions, "saying")
    own, others = whole(task, model), whole(task, other)
    assert own != others
    text = ["Say 3: " * 100]
    for speaker, expected in (("model", own), ("other", others)):
        prompts = {name: speaking if name == speaker else choosing for name in folders}
        mix(folders, prompts, tmp_path / f"{speaker} speaks")
        bundle = Bundle.load(tmp_path / f"{speaker} speaks")
        assert whole(task, bundle) == expected
        silent = bundle.expert(bundle.route([""])[0].expert)
        assert bundle.text_likelihoods(text) == silent.text_likelihoods(text)


def test_a_group_is_one_task_with_all_its_members_items(
    model: HuggingFaceModel, definitions: Path
) -> None:
    ours = whole(task_of(definitions, "both"), model)
    alone = {
        f"{name}/{item}": numbers
        for name in ("colours", "shades")
        for item, numbers in whole(task_of(definitions, name), model).items()
    }
    assert ours == alone
    assert len(ours) == 36


def test_a_part_is_scored_as_within_the_whole(model: HuggingFaceModel, definitions: Path) -> None:
    task = task_of(definitions, "colours", shots=2)
    every = task.evaluate(model, "search")
    assert task.evaluate(model, "search") == every
    part = task.evaluate(model, "search", part=[3, 0])
    assert part == TaskScores(
        "colours",
        (every.items[3], every.items[0]),
        (every.values[3], every.values[0]),
        (every.groups[3], every.groups[0]),
        {name: (column[3], column[0]) for name, column in every.metrics.items()},
    )


def test_the_splits_are_disjoint_and_follow_from_the_documents_alone(definitions: Path) -> None:
    task = task_of(definitions, "colours")
    search, report = task.items("search"), task.items("report")
    assert len(search) + len(report) == 24
    assert min(len(search), len(report)) >= 6
    assert not {i.group for i in search} & {i.group for i in report}
    assert all(i.prompt.startswith("Q: Which colour has number") for i in search)
    limited = task_of(definitions, "colours", limit=10)
    kept = [item.id for item in search if int(item.id) < 10]
    assert [item.id for item in limited.items("search")] == kept
    everything = task_of(definitions, "colours", search_share=0)
    assert len(everything.items("report")) == 24
    with pytest.raises(TaskError, match="has no search items"):
        everything.items("search")


def test_own_splits_are_taken_and_what_stands_in_both_is_only_in_the_report(
    definitions: Path,
) -> None:
    task = task_of(definitions, "colours", search_split="dev", report_split="test")
    assert [item.id for item in task.items("search")] == ["dev/0", "dev/1", "dev/2", "dev/3"]
    assert len(task.items("report")) == 24
    with pytest.raises(TaskError, match=r'no split \'tset\'; did you mean "test"\?'):
        task_of(definitions, "colours", search_split="dev", report_split="tset").check()


def test_another_metric_is_the_score_where_it_is_asked_for(
    model: HuggingFaceModel, definitions: Path
) -> None:
    by_acc = task_of(definitions, "colours", metric="acc").evaluate(model, "search")
    assert by_acc.values == by_acc.metrics["acc"]
    letters = "exact_match,letters"
    by_letters = task_of(definitions, "saying", metric=letters).evaluate(model, "search")
    assert by_letters.values == by_letters.metrics[letters]
    with pytest.raises(TaskError, match=r'no \'ac_norm\'; did you mean "acc_norm"'):
        task_of(definitions, "colours", metric="ac_norm").check()


def test_less_is_better_turns_the_sign(
    model: HuggingFaceModel, definitions: Path, tmp_path: Path
) -> None:
    definition = yaml.safe_load((definitions / "colours.yaml").read_text())
    definition["metric_list"] = [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": False}
    ]
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(definition))
    turned = task_of(tmp_path, "colours").evaluate(model, "search")
    straight = task_of(definitions, "colours", metric="acc").evaluate(model, "search")
    assert turned.metrics["acc"] == straight.values
    assert turned.values == tuple(-value for value in straight.values)


def test_the_digest_follows_the_data_and_the_settings(definitions: Path, tmp_path: Path) -> None:
    before = task_of(definitions, "shades").digest()
    assert task_of(definitions, "shades").digest() == before
    assert task_of(definitions, "shades", shots=1).digest() != before
    definition = yaml.safe_load((definitions / "shades.yaml").read_text())
    lines = (definitions / "shades.test.jsonl").read_text().replace("red", "scarlet")
    changed = tmp_path / "changed.jsonl"
    changed.write_text(lines)
    definition["dataset_kwargs"]["data_files"]["test"] = str(changed)
    (tmp_path / "shades.yaml").write_text(yaml.safe_dump(definition))
    assert task_of(tmp_path, "shades").digest() != before


def altered(definitions: Path, folder: Path, name: str, **more: Any) -> Path:
    """Another folder in which a task is defined a little otherwise."""
    shutil.copytree(definitions, folder)
    definition = yaml.safe_load((definitions / f"{name}.yaml").read_text())
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**definition, **more}))
    return folder


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("colours", {"doc_to_target": "{{(gold + 1) % 3}}"}),
        ("colours", {"metric_list": mean_of("acc_norm", "acc")}),
        ("saying", {"metric_list": mean_of("exact_match", ignore_case=True)}),
        ("saying", {"filter_list": [{"name": "n", "filter": [{"function": "take_first"}]}]}),
    ],
    ids=["target", "metrics", "how they compare", "filters"],
)
def test_the_digest_follows_what_is_right(
    name: str, more: dict[str, Any], definitions: Path, tmp_path: Path
) -> None:
    before = task_of(definitions, name).digest()
    assert task_of(altered(definitions, tmp_path / "same", name), name).digest() == before
    assert task_of(altered(definitions, tmp_path / "other", name, **more), name).digest() != before


def test_the_digest_follows_the_functions_that_judge(definitions: Path, tmp_path: Path) -> None:
    digests = []
    for number, verdict in enumerate(("1.0", "1.0", "0.0")):
        folder = altered(definitions, tmp_path / str(number), "saying")
        judge = f"def judge(document, answers):\n    return {{'exact_match': {verdict}}}\n"
        (folder / "judging.py").write_text(judge)
        with (folder / "saying.yaml").open("a") as file:
            file.write("process_results: !function judging.judge\n")
        digests.append(task_of(folder, "saying").digest())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ({"validation_split": "dev"}, {"search_split": "dev", "report_split": "test"}),
        ({}, {}),
    ],
    ids=["the searched split", "the split that is cut in two"],
)
def test_examples_that_are_items_are_refused(
    source: dict[str, str], settings: dict[str, str], definitions: Path, tmp_path: Path
) -> None:
    definition = yaml.safe_load((definitions / "colours.yaml").read_text())
    del definition["fewshot_split"]
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump({**definition, **source}))
    with pytest.raises(TaskError, match=r"items to be scored; .* too few for 2 shots\. Give shots"):
        task_of(tmp_path, "colours", shots=2, **settings).check()
    task_of(tmp_path, "colours", shots=0, **settings).check()
    if not settings:  # those beyond the limit are free
        few = task_of(tmp_path, "colours", shots=2, limit=12)
        assert not any(shown(i.prompt) & set(range(12)) for i in every(few))


def test_an_item_among_the_examples_is_never_shown(definitions: Path, tmp_path: Path) -> None:
    definition = yaml.safe_load((definitions / "colours.yaml").read_text())
    files = definition["dataset_kwargs"]["data_files"]
    lines = [Path(files[name]).read_text().splitlines() for name in ("train", "test")]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([*lines[0][:3], *lines[1]]) + "\n")
    files["train"] = str(mixed)
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(definition))
    asked = every(task_of(tmp_path, "colours", shots=3))
    assert len(asked) == 24
    assert all(shown(item.prompt) == {36, 37, 38} for item in asked)


def every(task: HarnessTask) -> list[Any]:
    return [*task.items("search"), *task.items("report")]


def shown(prompt: str) -> set[int]:
    """The numbers of the examples before a question."""
    before = prompt.rpartition("Q: ")[0]
    return {int(n) for n in re.findall(r"has number ([0-9]+)", before)}


def test_a_metric_of_all_items_together_is_refused_before_anything_is_scored(
    definitions: Path, tmp_path: Path
) -> None:
    def with_metrics(*names: str) -> Path:
        metrics = [{"metric": name, "higher_is_better": True} for name in names]
        folder = tmp_path / " ".join(names)
        return altered(definitions, folder, "colours", metric_list=metrics)

    together = with_metrics("f1", "mcc")
    with pytest.raises(TaskError, match=r"metric: f1, mcc of colours is no number .* item: none"):
        task_of(together, "colours").check()
    both = with_metrics("f1", "acc")
    with pytest.raises(TaskError, match=r"metric: f1 of colours is no number .* item: acc"):
        task_of(both, "colours", metric="f1").check()
    task_of(both, "colours").check()
    translated = altered(definitions, tmp_path / "bleu", "saying", metric_list=[{"metric": "bleu"}])
    with pytest.raises(TaskError, match="metric: bleu of saying"):
        task_of(translated, "saying").check()


def test_data_that_are_not_there_are_named_before_anything_is_scored(tmp_path: Path) -> None:
    define(tmp_path, "gone", {"test": str(tmp_path / "gone.jsonl")}, output_type="multiple_choice")
    remote = {"task": "remote", "dataset_path": "nobody/nothing", "test_split": "test"}
    (tmp_path / "remote.yaml").write_text(yaml.safe_dump(remote))
    with pytest.raises(TaskError, match=r"task gone: gone .* cannot be loaded .*gone\.jsonl"):
        task_of(tmp_path, "gone").check()
    with pytest.raises(TaskError, match=r"task remote: .*dataset nobody/nothing.*network"):
        task_of(tmp_path, "remote").check()


def test_code_that_would_run_unprotected_is_refused(definitions: Path, tmp_path: Path) -> None:
    definition = yaml.safe_load((definitions / "saying.yaml").read_text())
    (tmp_path / "saying.yaml").write_text(yaml.safe_dump({**definition, "unsafe_code": True}))
    with pytest.raises(TaskError, match=r"outside any sandbox; .*suite: paper"):
        task_of(tmp_path, "saying").check()


def test_an_unknown_task_is_refused_with_the_nearest_name(
    definitions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelglue.evaluate.harness import items

    # The harness's own thousands of definitions take twelve seconds to look through.
    manager = items._manager
    monkeypatch.setattr(items, "_manager", lambda i, defaults: manager(i, defaults=False))
    with pytest.raises(TaskError, match=r'no task \'colors\'; did you mean "colours"\?'):
        task_of(definitions, "colors").check()
    with pytest.raises(TaskError, match=r"include: .*nowhere is no folder"):
        task_of(definitions / "nowhere", "colours").check()


def test_without_the_harness_the_extra_is_named(
    definitions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "modelglue.evaluate.harness.items", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(TaskError, match=r"not installed .*pip install 'modelglue\[harness\]'"):
        task_of(definitions, "colours").check()


def test_sampling_that_is_not_known_is_refused(definitions: Path, tmp_path: Path) -> None:
    from modelglue.errors import EvaluationError
    from modelglue.evaluate.harness.model import _settings

    greedy = _settings({"until": "x", "top_k": 5, "num_beams": 1, "max_tokens": 7})
    assert greedy == {"max_new_tokens": 7, "stop": ["x"]}
    sampled = _settings({"until": ["a", ""], "do_sample": True, "temperature": 0.2, "top_p": 0.9})
    assert sampled == {
        "max_new_tokens": 256,
        "stop": ["a"],
        "temperature": 0.2,
        "top_p": 0.9,
    }
    unknown = {"until": [], "do_sample": True, "top_k": 5}
    with pytest.raises(EvaluationError, match="samples with top_k"):
        _settings(unknown)
    folder = altered(definitions, tmp_path / "sampling", "saying", generation_kwargs=unknown)
    with pytest.raises(TaskError, match="task saying: the task samples with top_k"):
        task_of(folder, "saying").check()
