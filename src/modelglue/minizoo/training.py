"""Training of one model on a stream of documents, on one core."""

import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from modelglue.minizoo.data.example import Document, Example
from modelglue.minizoo.data.tasks import Source
from modelglue.minizoo.preset import Training

# What a prompt's tokens weigh in the loss: they are mostly drawn at random, so there is little to
# learn from them, but a model that never predicts them is no language model.
_PROMPT_WEIGHT = 0.1


@dataclass(frozen=True)
class Effort:
    """What a training took, and the dev accuracies that were measured on the way."""

    steps: int
    tokens: int
    seconds: float
    checks: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Batch:
    """Whole documents packed into rows; a document sees itself alone."""

    tokens: Tensor  # [rows, length]
    weights: Tensor  # [rows, length], of the prediction of each token
    positions: Tensor  # [rows, length]
    mask: Tensor  # [rows, 1, length, length], true where attention may look


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    sources: Mapping[str, Source],
    settings: Training,
    rng: random.Random,
    *,
    dev: Sequence[Sequence[Example]] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Effort:
    """Train in place, by AdamW.

    With a `target` the rate stays constant until the mean accuracy over the sets of `dev` reaches
    it, then falls over `cooldown` steps; otherwise it falls over all steps, along a cosine.
    """
    began = time.perf_counter()
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    batches = pack(documents(sources, settings.data, rng), tokenizer, settings)
    checks: list[tuple[int, float]] = []
    met: int | None = None if settings.target is not None else 0
    last = settings.steps
    step = tokens = 0
    while step < last:
        rate = settings.learning_rate * _schedule(settings, step, met)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(batches)
        torch.autograd.backward(_loss(model, batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        tokens += int((batch.weights > 0).sum())
        if met is None and step % settings.check_every == 0 and settings.target is not None:
            accuracy = sum(exact_match(model, tokenizer, part) for part in dev) / len(dev)
            checks.append((step, accuracy))
            if accuracy >= settings.target or step >= settings.steps - settings.cooldown:
                met, last = step, step + settings.cooldown
        if progress and step % 10 == 0:
            progress(step, last)
    model.eval()
    return Effort(step, tokens, time.perf_counter() - began, tuple(checks))


def exact_match(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> float:
    """The share of examples whose completion the model would write greedily, by one forward pass.

    A completion is what greedy decoding writes just if each token is the likeliest after the right
    ones before it.
    """
    model.eval()
    hits = 0
    for start in range(0, len(examples), 50):
        part = examples[start : start + 50]
        encoded = [_encode(tokenizer, Document(e.prompt, e.completion)) for e in part]
        length = max(len(ids) for ids, _ in encoded)
        tokens = torch.zeros(len(part), length, dtype=torch.long)
        for row, (ids, _) in enumerate(encoded):
            tokens[row, : len(ids)] = torch.tensor(ids)
        with torch.inference_mode(), _autocast():
            best = model(input_ids=tokens).logits.argmax(-1)
        for row, (ids, prompt) in enumerate(encoded):
            hits += bool(
                (best[row, prompt - 1 : len(ids) - 1] == tokens[row, prompt : len(ids)]).all()
            )
    model.train()
    return hits / len(examples)


def documents(
    sources: Mapping[str, Source], shares: Mapping[str, float], rng: random.Random
) -> Iterator[Document]:
    """An endless stream of documents, sources drawn by their shares."""
    names, weights = list(shares), list(shares.values())
    while True:
        for name in rng.choices(names, weights, k=256):
            yield sources[name](rng)


def pack(
    stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast, settings: Training
) -> Iterator[Batch]:
    """Batches of rows filled with whole documents, in the order in which they come."""
    rows: list[list[tuple[list[int], int]]] = [[]]
    room = settings.length
    while True:
        for ids, prompt in _encode_all(tokenizer, [next(stream) for _ in range(256)]):
            if len(ids) > room and rows[-1]:
                if len(rows) == settings.rows:
                    yield _batch(rows, settings.length)
                    rows = []
                rows.append([])
                room = settings.length
            rows[-1].append((ids[: settings.length], prompt))
            room -= len(ids)


def _batch(rows: Sequence[Sequence[tuple[list[int], int]]], length: int) -> Batch:
    shape = (len(rows), length)
    tokens = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    weights = torch.zeros(shape)
    owner = torch.full(shape, -1)
    for r, row in enumerate(rows):
        start = 0
        for number, (ids, prompt) in enumerate(row):
            end = start + len(ids)
            tokens[r, start:end] = torch.tensor(ids)
            positions[r, start:end] = torch.arange(len(ids))
            weights[r, start + 1 : start + prompt] = _PROMPT_WEIGHT
            weights[r, start + prompt : end] = 1.0
            owner[r, start:end] = number
            start = end
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = owner[:, None, :, None] == owner[:, None, None, :]
    return Batch(tokens, weights, positions, same & causal)


def _loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    with _autocast():
        logits = model(
            input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask
        ).logits
    weights = batch.weights[:, 1:].flatten()
    # Only the predictions that count reach the softmax, which is a good part of the work.
    chosen = weights.nonzero().squeeze(1)
    losses = cross_entropy(
        logits[:, :-1].flatten(0, 1)[chosen].float(),
        batch.tokens[:, 1:].flatten()[chosen],
        reduction="none",
    )
    return (losses * weights[chosen]).sum() / weights.sum()


@functools.cache
def _has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; where it would be emulated, fp32 is faster."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=_has_bfloat16())


def _schedule(settings: Training, step: int, met: int | None) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if met is None:
        return 1.0
    span = settings.cooldown if settings.target is not None else settings.steps - settings.warmup
    done = step - (met if settings.target is not None else settings.warmup)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(1.0, done / max(1, span)))).item())
    return settings.final + (1 - settings.final) * cosine


def _encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], int]:
    return next(iter(_encode_all(tokenizer, [document])))


def _encode_all(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]
) -> Iterator[tuple[list[int], int]]:
    """Token ids with `</s>` at the end, and how many of them are the prompt (`<s>` at least)."""
    whole = tokenizer([d.prompt + d.completion for d in documents])["input_ids"]
    prompts = tokenizer([d.prompt for d in documents])["input_ids"]
    for ids, prompt in zip(whole, prompts, strict=True):
        yield [*ids, tokenizer.eos_token_id], len(prompt)
