"""The kinds of statistics, behind one face: which tensors, and how a group of them is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modelglue.calibrate.fisher import Labels, diagonal_fisher
from modelglue.calibrate.gram import batches, input_grams
from modelglue.calibrate.targets import Target, Targets, fisher_targets, gram_targets, stored
from modelglue.checkpoint.reader import Checkpoint
from modelglue.evaluate.encoding import Tokens

Compute = Callable[[Sequence[Target], Callable[[], None]], dict[str, Tensor]]


@dataclass(frozen=True)
class Work:
    """What is to be computed, and how.

    Attributes:
        targets: what gets a statistic, and what does not.
        steps: of `compute`, for whatever group.
        compute: the statistics of a group of targets, under the names of the checkpoint.
    """

    targets: Targets
    steps: int
    compute: Compute


def fisher_work(
    module: Any, checkpoint: Checkpoint, cut: Sequence[Tokens], *, labels: Labels, seed: int
) -> Work:
    """The Fisher information of every parameter: a step a sequence."""

    def compute(group: Sequence[Target], step: Callable[[], None]) -> dict[str, Tensor]:
        parameters = [target.parameter for target in group]
        found = diagonal_fisher(module, parameters, cut, labels=labels, seed=seed, step=step)
        return {
            name: part
            for target, fisher in zip(group, found, strict=True)
            for name, part in stored(module, checkpoint, target.lives, fisher).items()
        }

    return Work(fisher_targets(module, checkpoint), len(cut), compute)


def gram_work(
    module: Any, checkpoint: Checkpoint, cut: Sequence[Tokens], *, batch_size: int
) -> Work:
    """The Gram matrices of every linear layer's inputs: a step a batch."""
    batched = batches(cut, batch_size)

    def compute(group: Sequence[Target], step: Callable[[], None]) -> dict[str, Tensor]:
        found = input_grams(module, [target.modules for target in group], batched, step=step)
        return {
            name: gram for target, gram in zip(group, found, strict=True) for name in target.names
        }

    return Work(gram_targets(module, checkpoint), len(batched), compute)
