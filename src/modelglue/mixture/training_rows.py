"""Texts as a model reads them: rows of tokens, and what a mixture loses on each."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelglue.errors import NonFiniteOutput
from modelglue.evaluate.encoding import Encoder
from modelglue.mixture.training_samples import Sample

IGNORED = -100
"""The label of a token that is not predicted."""


@dataclass(frozen=True)
class Row:
    """A sequence to train on.

    Attributes:
        tokens: all of them.
        start: the first one that is predicted; 1 at least.
        routed: how many of the first tokens a sample's route is decided on.
        document: the number of the text that its sample is routed on; a long one gives several
            rows, and what is asked twice as well.
    """

    tokens: tuple[int, ...]
    start: int
    routed: int
    document: int = 0

    @property
    def counted(self) -> int:
        """How many tokens are predicted."""
        return len(self.tokens) - self.start


def batch_of(rows: Sequence[Row], *, routing_mask: bool) -> dict[str, Tensor]:
    """Rows padded on the right, as a model takes them; padding and prompts have no label."""
    longest = max(len(row.tokens) for row in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), longest, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), longest, dtype=torch.long),
        "labels": torch.full((len(rows), longest), IGNORED),
    }
    seen = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        end = len(row.tokens)
        batch["input_ids"][place, :end] = torch.tensor(row.tokens)
        batch["attention_mask"][place, :end] = 1
        batch["labels"][place, row.start : end] = torch.tensor(row.tokens[row.start :])
        seen[place, : row.routed] = 1
    return {**batch, "routing_mask": seen} if routing_mask else batch


def takes_routing_mask(module: Any) -> bool:
    """Whether it can be told which tokens a route is decided on."""
    return "routing_mask" in inspect.signature(module.forward).parameters


def rows_of(samples: Sequence[Sample], encoder: Encoder, length: int) -> Iterator[Row]:
    """What is read of the samples: sequences of `length` tokens at most, none of a single one.

    A prompt that leaves no room loses its beginning.
    """
    length = min(length, encoder.max_length)
    numbers: dict[str, int] = {}
    for sample in samples:
        number = numbers.setdefault(sample.routed_on, len(numbers))
        (tokens,) = encoder.encode([sample.prompt + sample.text])
        if not sample.prompt:
            for begin in range(0, len(tokens), length):
                piece = tokens[begin : begin + length]
                if len(piece) > 1:
                    yield Row(piece, 1, len(piece), number)
            continue
        start = len(encoder.encode([sample.prompt])[0])
        cut = max(0, len(tokens) - length)
        if cut < start < len(tokens):
            yield Row(tokens[cut:], start - cut, start - cut, number)


@torch.inference_mode()
def losses(module: Any, rows: Sequence[Row], at_once: int) -> NDArray[np.float64]:
    """The summed loss of each row, in nats, [rows]."""
    was_training, found = module.training, []
    module.eval()
    takes_mask = takes_routing_mask(module)
    for begin in range(0, len(rows), at_once):
        batch = batch_of(rows[begin : begin + at_once], routing_mask=takes_mask)
        batch = {name: tensor.to(module.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        logs = module(**batch, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
        counted = labels != IGNORED
        told = logs.gather(2, labels.clamp_min(0)[:, :, None])[:, :, 0]
        found += (-(told * counted).double().sum(dim=1)).tolist()
    module.train(was_training)
    if not np.isfinite(found).all():
        raise NonFiniteOutput("the mixture's loss on a text is NaN or infinite")
    return np.array(found)
