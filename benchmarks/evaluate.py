"""Scoring multiple choice: modelglue against lm-evaluation-harness on the same items.

Random Llama-shaped models of about 1, 20 and 100 M parameters (fp32) score items with four choices,
without examples and behind five. Both sides get the same contexts and choices as text, in turn, in
one process with one thread:

- harness: `lm_eval.models.huggingface.HFLM(pretrained=model, …).loglikelihood(requests)`, with the
  fastest of its batch sizes 8, 16, 32, 64 (tried beforehand on a part of the items, not counted).
- modelglue: `HuggingFaceModel(model, tokenizer).loglikelihoods(contexts, choices)`, made anew each
  time: with tokenisation, and with finding out what the model's attention can take.
- again: the same call once more on the same object, as a search does with other weights.
- forward: the part of `again` that was spent inside the model's own forward pass.

What is timed is the scoring alone: models, tokenizers and imports stand before the clock starts.
Printed: CPU seconds of the process (user and system; the median of `--repeats`), the ratios, and
the largest difference of a log-likelihood between the two sides.

Items are made up: a story with numbers, a question, and equations to choose from. `--gsm8k FILE`
takes a file of GSM8K instead (one JSON object a line with `question` and `answer`): the choices are
the last equations of four solutions.

    python benchmarks/evaluate.py [--sizes 1 20 100] [--repeats 3] [--gsm8k FILE] [--json FILE]
"""

import argparse
import json
import logging
import os
import platform
import random
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

# Parameters in millions: vocabulary, hidden, FFN, layers, heads, and how many items are scored.
SHAPES = {
    1: (1024, 128, 384, 4, 4, 100),
    20: (8192, 384, 1152, 9, 6, 40),
    100: (32000, 768, 2048, 12, 12, 12),
}
SHOTS = (0, 5)
HARNESS_BATCHES = (8, 16, 32, 64)
CHOICES = 4
MOST_APART = 1e-4


@dataclass(frozen=True)
class Question:
    """A question and the equation that answers it."""

    text: str
    equation: str


@dataclass(frozen=True)
class Items:
    """Contexts, and the choices after each."""

    contexts: list[str]
    choices: list[list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", choices=SHAPES, default=[1, 20])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--items", type=int, help="of each size; by default fewer of larger ones")
    parser.add_argument("--gsm8k", type=Path, help="a file of GSM8K to take the items from")
    parser.add_argument("--json", type=Path, help="where to write the figures; old ones are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    questions = gsm8k(arguments.gsm8k) if arguments.gsm8k else made_up(400)
    corpus = "GSM8K" if arguments.gsm8k else "made up"
    print(
        f"{'':>8}{'shots':>6}{'items':>6}{'harness s':>11}{'batch':>6}{'modelglue s':>13}"
        f"{'ratio':>7}{'again s':>9}{'ratio':>7}{'forward s':>11}{'difference':>12}"
    )
    results = []
    for size in arguments.sizes:
        model, tokenizer = make_model(size, questions)
        for shots in SHOTS:
            items = make_items(questions, arguments.items or SHAPES[size][-1], shots)
            result = compare(model, tokenizer, items, repeats=arguments.repeats)
            result = {"size": size, "shots": shots, "corpus": corpus, **result}
            print_line(result)
            results.append(result)
            if arguments.json:
                keep(arguments.json, result)
    if any(result["difference"] > MOST_APART for result in results):
        sys.exit("the two sides do not agree")


def gsm8k(path: Path) -> list[Question]:
    """Questions with the last calculation of their solutions."""
    found = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        steps = re.findall(r"<<(.+?)=(.+?)>>", record["answer"])
        if steps:
            found.append(Question(record["question"].strip(), " = ".join(steps[-1])))
    return found


def made_up(count: int) -> list[Question]:
    """Short stories with two numbers, of the length of a word problem at school."""
    draw = random.Random(0)
    names = "Ada Ben Carla Dan Eve Finn Gina Hal Ines Jo Kim Leo Mia Ned Olga Pia Quin Rosa".split()
    goods = "apples books candles drums eggs flutes grapes hats jars kites lamps maps nuts".split()
    places = "at the market by the river in the old barn on the hill near the school".split(" ")
    found = []
    for _ in range(count):
        name, other = draw.sample(names, 2)
        good, extra = draw.sample(goods, 2)
        a, b, c = draw.randint(12, 99), draw.randint(2, 11), draw.randint(2, 40)
        place = " ".join(draw.sample(places, 4))
        found.append(
            Question(
                f"{name} keeps {a} {good} {place} and {c} {extra} in a box. On the way home "
                f"{other} asks for some of the {good}, and {name} gives {b} of them away. "
                f"The {extra} are for the winter. How many {good} does {name} have now?",
                f"{a} - {b} = {a - b}",
            )
        )
    return found


def make_items(questions: list[Question], count: int, shots: int) -> Items:
    """The first questions are the examples, the others the items."""
    draw = random.Random(1)
    before = "".join(f"{prompt(q)} {q.equation}\n\n" for q in questions[:shots])
    asked = questions[max(SHOTS) : max(SHOTS) + count]
    choices = []
    for question in asked:
        wrong = [q.equation for q in questions if q.equation != question.equation]
        texts = [question.equation, *draw.sample(sorted(set(wrong)), CHOICES - 1)]
        draw.shuffle(texts)
        choices.append([f" {text}" for text in texts])
    return Items([before + prompt(question) for question in asked], choices)


def prompt(question: Question) -> str:
    return f"Question: {question.text}\nAnswer:"


def make_model(size: int, questions: list[Question]) -> tuple[Any, Any]:
    """A model with random weights, and a byte-level BPE trained on the questions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary, hidden, ffn, layers, heads, _ = SHAPES[size]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([f"{prompt(q)} {q.equation}\n\n" for q in questions], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def compare(model: Any, tokenizer: Any, items: Items, *, repeats: int) -> dict[str, Any]:
    """Both sides in turn, and how far their log-likelihoods are apart."""
    quarter = slice(len(items.contexts) // 4)
    part = Items(items.contexts[quarter], items.choices[quarter])
    tried = {size: timed(harness(model, tokenizer, part, size))[0] for size in HARNESS_BATCHES}
    batch = min(tried, key=tried.__getitem__)
    spent: dict[str, list[float]] = {"harness": [], "modelglue": [], "again": [], "forward": []}
    apart = 0.0
    for _ in range(repeats):
        cpu, expected = timed(harness(model, tokenizer, items, batch))
        spent["harness"].append(cpu)
        score = ours(model, tokenizer, items)
        cpu, found = timed(score)
        spent["modelglue"].append(cpu)
        with inside(model) as forward:
            cpu, again = timed(score)
        spent["again"].append(cpu)
        spent["forward"].append(sum(forward))
        for one in (found, again):
            apart = max(apart, *(abs(a - b) for a, b in zip(expected, one, strict=True)))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "items": len(items.contexts),
        "tokens": statistics.median(len(ids) for ids in tokenizer(items.contexts).input_ids),
        "batch": batch,
        "repeats": repeats,
        "cpu": {side: round(statistics.median(times), 3) for side, times in spent.items()},
        "runs": {side: [round(one, 3) for one in times] for side, times in spent.items()},
        "difference": apart,
    }


def harness(model: Any, tokenizer: Any, items: Items, batch: int) -> Callable[[], list[float]]:
    """The harness's side, ready to run."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    side = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    requests = [
        Instance("loglikelihood", {}, (context, choice), n)
        for context, choices in zip(items.contexts, items.choices, strict=True)
        for n, choice in enumerate(choices)
    ]
    return lambda: [total for total, _ in side.loglikelihood(requests, disable_tqdm=True)]


def ours(model: Any, tokenizer: Any, items: Items) -> Callable[[], list[float]]:
    """Our side, ready to run; the second run finds what the first has remembered."""
    from modelglue.evaluate.huggingface import HuggingFaceModel

    side = HuggingFaceModel(model, tokenizer)

    def score() -> list[float]:
        found = side.loglikelihoods(items.contexts, items.choices)
        return [likelihood.total for likelihoods in found for likelihood in likelihoods]

    return score


def timed(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """CPU seconds of this process, and what came of them."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@contextmanager
def inside(model: Any) -> Iterator[list[float]]:
    """CPU seconds of each forward pass meanwhile."""
    spent: list[float] = []
    starts: list[float] = []
    before = model.register_forward_pre_hook(lambda *_: starts.append(time.process_time()))
    after = model.register_forward_hook(lambda *_: spent.append(time.process_time() - starts.pop()))
    yield spent
    before.remove()
    after.remove()


def print_line(result: dict[str, Any]) -> None:
    cpu = result["cpu"]
    print(
        f"{result['parameters'] / 1e6:6.1f} M{result['shots']:6}{result['items']:6}"
        f"{cpu['harness']:11.2f}{result['batch']:6}"
        f"{cpu['modelglue']:13.2f}{cpu['harness'] / cpu['modelglue']:7.1f}"
        f"{cpu['again']:9.2f}{cpu['harness'] / cpu['again']:7.1f}"
        f"{cpu['forward']:11.2f}{result['difference']:12.1e}",
        flush=True,
    )


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write a result among those that the file holds, in the place of an older one like it."""
    results = json.loads(path.read_text())["results"] if path.exists() else []
    like = ("corpus", "size", "shots")
    results = [old for old in results if any(old[key] != result[key] for key in like)]
    results = sorted([*results, result], key=lambda one: [one[key] for key in like])
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": found[1] if found else platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("modelglue", "torch", "transformers", "lm-eval")},
    }


if __name__ == "__main__":
    main()
