"""Log-likelihoods are those of lm-evaluation-harness's own model class, on the same items."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers.processors import TemplateProcessing

import tiny
from modelglue.evaluate.examples import opening
from modelglue.evaluate.huggingface import HuggingFaceModel
from modelglue.evaluate.kinds import Item, joined
from modelglue.evaluate.kinds.multiple_choice import MultipleChoice
from modelglue.evaluate.model import Likelihood

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gpt_neox": {},
    # Windows that bind on every question.
    "gemma2": {"sliding_window": 24, "head_dim": 8},
}
GOODS = ["apples", "books", "old lamps", "cups of tea", "eggs", "nuts"] * 2
RECORDS = [
    {
        "prompt": f"Question: Ada has {n} {good} and buys {n % 4 + 2} more. How many?\nAnswer:",
        "choices": [f"{2 * n + 2}", f"{n + n % 4 + 2} {good}", f"{n} {good} or so", "none at all"],
        "answer": n % 4,
    }
    for n, good in enumerate(GOODS, start=7)
]
# Longer than the context.
RECORDS.append({**RECORDS[-1], "prompt": "very " * 130 + RECORDS[-1]["prompt"]})


@pytest.fixture(scope="module", params=FAMILIES)
def model(
    request: pytest.FixtureRequest,
    make_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> HuggingFaceModel:
    path = tmp_path_factory.mktemp("family") / request.param
    path = make_model(
        path, model_type=request.param, max_position_embeddings=640, **FAMILIES[request.param]
    )
    model = HuggingFaceModel.load(path)
    with torch.no_grad():  # at its initial weights a model hardly looks at its context
        for parameter in model.module.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    return model


def by_harness(
    model: HuggingFaceModel, contexts: list[str], continuations: list[list[str]]
) -> list[list[tuple[float, bool]]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    side = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=4)
    pairs = [(c, t) for c, texts in zip(contexts, continuations, strict=True) for t in texts]
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    found = iter(side.loglikelihood(requests, disable_tqdm=True))
    return [[next(found) for _ in texts] for texts in continuations]


@pytest.mark.parametrize("shots", [0, 5])
def test_likelihoods_are_those_of_the_harness(model: HuggingFaceModel, shots: int) -> None:
    examples = [Item(str(n), str(n), record) for n, record in enumerate(RECORDS[:shots])]
    before = opening({"examples": examples}, lambda r: (r["prompt"], r["choices"][r["answer"]]))
    contexts = [before + record["prompt"] for record in RECORDS[5:]]
    choices = [[joined(record["prompt"], c) for c in record["choices"]] for record in RECORDS[5:]]
    assert_equal(model, contexts, choices)
    layouts = {layout for (layout, _), works in model._scorer._works.items() if works}
    assert layouts >= ({"prefix", "tree"} if shots else {"tree"})


def test_odd_items_are_those_of_the_harness(model: HuggingFaceModel) -> None:
    contexts = ["", "ends in a space ", "one\n", "x" * 700, "x"]
    choices = [["a", "bc"], ["d", "ef"], ["g", " h"], [" i", " jk"], [" " + "l" * 80, " m"]]
    assert_equal(model, contexts, choices)


@pytest.mark.parametrize("template", ["<s> $A", "<pad> <unk> $A"])
def test_what_a_tokenizer_puts_before_a_text_is_what_the_harness_puts_there(
    make_model: Callable[..., Path], tmp_path: Path, template: str
) -> None:
    """GLM-4 begins with two tokens, neither of which is declared to begin a text."""
    model = HuggingFaceModel.load(make_model(tmp_path / "m"))
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<pad>", 0), ("<s>", 1), ("<unk>", 3)]
    )
    opened = HuggingFaceModel(model.module, tokenizer)
    assert_equal(opened, ["the sky is", "<s>one two"], [[" blue", " grey"], [" three", " four"]])


def assert_equal(model: HuggingFaceModel, contexts: list[str], choices: list[list[str]]) -> None:
    expected = by_harness(model, contexts, choices)
    found = model.loglikelihoods(contexts, choices)
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.total for one in ours] == pytest.approx([t for t, _ in theirs], abs=1e-4)
        assert [one.greedy for one in ours] == [greedy for _, greedy in theirs]


def test_examples_are_written_as_the_harness_writes_them(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    shown, asked = RECORDS[:5], RECORDS[5:]
    for name, records in (("shown", shown), ("asked", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    definition = {
        "task": "counting",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {name: str(tmp_path / f"{name}.jsonl") for name in ("shown", "asked")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "asked",
        "fewshot_split": "shown",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 3,
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metadata": {"version": 1.0},
    }
    (tmp_path / "counting.yaml").write_text(yaml.safe_dump(definition))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    task = manager.load("counting")["tasks"]["counting"]
    task.build_all_requests()
    items = [Item(str(n), str(n), record) for n, record in enumerate(asked)]
    examples = [Item(str(n), str(n), record) for n, record in enumerate(shown[:3])]
    model = Listening()
    MultipleChoice().score(model, items, {"metric": "acc", "examples": examples}, None)
    assert model.pairs == [request.args for request in task.instances]


class Listening:
    """Remembers what it is asked."""

    parameters_stored = parameters_active = 0

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def loglikelihoods(self, contexts: Any, continuations: Any) -> list[list[Likelihood]]:
        self.pairs += [(c, t) for c, texts in zip(contexts, continuations) for t in texts]
        return [[Likelihood(-1.0, 1, 1, False) for _ in texts] for texts in continuations]

    def generate(self, prompts: Any, **_: Any) -> list[str]:
        raise AssertionError("nothing is to be written")
