"""Log-likelihoods of continuations, each context computed once for all of its continuations.

An item is one row: the tokens that its continuations share, then one branch a continuation. A tree
mask lets a branch see the shared tokens and itself, and position ids go on from the shared part:

    the sky is | blue today | grey        places 0 1 2 | 3 4 | 5    positions 0 1 2 | 3 4 | 3

Where an attention implementation cannot take such a mask, the same items are scored as plain rows,
one a continuation. Which of the two is found out on the first batch: both are computed, and the
tree is used only if they agree.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from modelglue.errors import EvaluationError
from modelglue.evaluate.encoding import Continued

# (Σ log p, tokens, every token is the most likely one)
Found = tuple[float, int, bool]
# Tokens of one batch. More would not be faster on a CPU, where it is the caches that count.
_CPU_TOKENS, _GPU_TOKENS = 2048, 32768
# Logits held at once, as numbers: 512 MB of fp32.
_MOST_LOGITS = 1 << 27
# How far the two ways may be apart, per token: rounding, not another result.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_COARSE_TOLERANCE = 0.05
_VERIFIED_ITEMS = 8


@dataclass(frozen=True)
class Row:
    """One item laid out for the model.

    Attributes:
        tokens, positions: one number a place.
        branches: which branch a place belongs to; 0 is the shared part, continuations follow.
        places: the places whose logits are wanted, continuation after continuation.
        targets: the token that each of them should predict.
        counts: how many tokens each continuation has.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Whether no place needs another mask than the causal one."""
        return len(set(self.branches)) == 1


@lru_cache(maxsize=100_000)
def lay_out(item: tuple[Continued, ...]) -> Row:
    """One row for a context with all of its continuations.

    The last token of a continuation predicts nothing that is asked for, and stays out.
    """
    inputs = [continued.tokens[:-1] for continued in item]
    shared = _shared_length(inputs)
    tokens, positions = list(inputs[0][:shared]), list(range(shared))
    branches = [0] * shared
    places: list[int] = []
    targets: list[int] = []
    for branch, (continued, row) in enumerate(zip(item, inputs, strict=True), start=1):
        offset = len(tokens) - shared
        tokens += row[shared:]
        positions += range(shared, len(row))
        branches += [branch] * (len(row) - shared)
        for place in range(continued.start - 1, len(row)):
            places.append(place if place < shared else offset + place)
            targets.append(continued.tokens[place + 1])
    counts = tuple(len(continued.tokens) - continued.start for continued in item)
    return Row(
        tuple(tokens), tuple(positions), tuple(branches), tuple(places), tuple(targets), counts
    )


class LikelihoodScorer:
    """Scores items with one module, and remembers which layout its attention can take."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._config = module.config.get_text_config()
        self._takes_positions = "position_ids" in inspect.signature(module.forward).parameters
        # By whether the sliding window binds: a mask that is right below it may be wrong above.
        self._tree_works: dict[bool, bool] = {}

    @torch.inference_mode()
    def score(
        self, items: Sequence[tuple[Continued, ...]], *, batch_size: int | Literal["auto"] = "auto"
    ) -> list[list[Found]]:
        """Score every continuation of every item.

        Raises:
            EvaluationError: the model gave NaN or infinity.
        """
        found: list[list[Found]] = [[] for _ in items]
        rows = [lay_out(item) if item else None for item in items]
        lengths = [len(row.tokens) if row else 0 for row in rows]
        order = [i for i in sorted(range(len(items)), key=lambda i: -lengths[i]) if rows[i]]
        for batch in self._batches([lengths[i] for i in order], batch_size):
            chosen = order[batch]
            scored = self._score_batch([items[i] for i in chosen], batch_size)
            for i, numbers in zip(chosen, scored, strict=True):
                found[i] = numbers
        return found

    def _score_batch(
        self, items: Sequence[tuple[Continued, ...]], batch_size: int | Literal["auto"]
    ) -> list[list[Found]]:
        rows = [lay_out(item) for item in items]
        if all(row.is_plain for row in rows):
            return self._forward(rows, tree=False)
        binds = self._window_binds(rows)
        if binds not in self._tree_works:
            self._tree_works[binds] = self._verify(items)
        if self._tree_works[binds]:
            return self._forward(rows, tree=True)
        return self._plain(items, batch_size)

    def _plain(
        self, items: Sequence[tuple[Continued, ...]], batch_size: int | Literal["auto"]
    ) -> list[list[Found]]:
        """One row a continuation, padded on the right, which a causal model never looks at."""
        rows = [lay_out((continued,)) for item in items for continued in item]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
        found: list[Found] = [(0.0, 0, True)] * len(rows)
        for batch in self._batches([len(rows[i].tokens) for i in order], batch_size):
            chosen = order[batch]
            for i, numbers in zip(
                chosen, self._forward([rows[i] for i in chosen], tree=False), strict=True
            ):
                found[i] = numbers[0]
        flat = iter(found)
        return [[next(flat) for _ in item] for item in items]

    def _verify(self, items: Sequence[tuple[Continued, ...]]) -> bool:
        """Whether the tree gives what plain rows give, on some of the items."""
        if not self._takes_positions:
            return False
        items = items[:_VERIFIED_ITEMS]
        plain = self._plain(items, "auto")
        try:
            tree = self._forward([lay_out(item) for item in items], tree=True)
        except (EvaluationError, RuntimeError, ValueError, TypeError, AttributeError, LookupError):
            return False  # the model's way of saying that it takes no such mask
        tolerance = _TOLERANCE.get(self._module.dtype, _COARSE_TOLERANCE)
        return all(
            abs(a[0] - b[0]) <= tolerance * max(1, a[1])
            for one, other in zip(plain, tree, strict=True)
            for a, b in zip(one, other, strict=True)
        )

    def _forward(self, rows: Sequence[Row], *, tree: bool) -> list[list[Found]]:
        device = self._module.device
        width = max(len(row.tokens) for row in rows)
        inputs: dict[str, Any] = {"input_ids": _padded([r.tokens for r in rows], width, 0, device)}
        if tree:
            positions = _padded([r.positions for r in rows], width, 0, device)
            branches = _padded([r.branches for r in rows], width, -1, device)
            inputs["position_ids"] = positions
            inputs["attention_mask"] = self._mask(branches, positions)
        places = [n * width + place for n, row in enumerate(rows) for place in row.places]
        if not places:
            return [[(0.0, 0, True)] * len(row.counts) for row in rows]
        logits = self._logits(inputs, torch.tensor(places, device=device)).float()
        targets = torch.tensor([t for row in rows for t in row.targets], device=device)
        normaliser = logits.logsumexp(dim=-1)
        if not bool(normaliser.isfinite().all()):
            raise EvaluationError("the model's logits are not finite (NaN or infinity)")
        numbers = (logits.gather(1, targets[:, None])[:, 0] - normaliser).double().tolist()
        greedy = (logits.argmax(dim=-1) == targets).tolist()
        return _split(rows, numbers, greedy)

    def _logits(self, inputs: dict[str, Any], places: Tensor) -> Tensor:
        """The logits [n, vocabulary] at those places of the flattened batch."""
        head = self._module.get_output_embeddings()
        if head is None:
            logits: Tensor = self._module(**inputs, use_cache=False).logits
            return logits.flatten(0, 1)[places]
        with _only_at(head, places):
            logits = self._module(**inputs, use_cache=False).logits
        return logits.flatten(0, 1)

    def _mask(self, branches: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The tree mask, [batch, 1, width, width]; by kind of layer where they differ.

        A window counts positions, not places.
        """
        width = branches.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=branches.device).tril()
        key = branches[:, None, :]
        seen = causal & ((key == 0) | (key == branches[:, :, None]))
        full = self._as_mask(seen)
        if not (window := _window(self._config)):
            return full
        near = positions[:, :, None] - positions[:, None, :] < window
        sliding = self._as_mask(seen & near)
        layer_types = set(getattr(self._config, "layer_types", None) or ["sliding_attention"])
        if bool((positions < window).all()) or layer_types == {"full_attention"}:
            return full
        if layer_types == {"sliding_attention"}:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}

    def _as_mask(self, seen: Tensor) -> Tensor:
        if self._config._attn_implementation == "sdpa":  # takes either; this one is cheaper
            return seen[:, None]
        dtype = self._module.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    def _window_binds(self, rows: Sequence[Row]) -> bool:
        window = _window(self._config)
        return bool(window) and any(max(row.positions) >= window for row in rows)

    def _batches(
        self, lengths: Sequence[int], batch_size: int | Literal["auto"]
    ) -> Iterator[slice]:
        """Slices of rows sorted by falling length, so that little of a batch is padding."""
        tokens = _CPU_TOKENS if self._module.device.type == "cpu" else _GPU_TOKENS
        tokens = min(tokens, max(1, _MOST_LOGITS // self._config.vocab_size))
        start = 0
        while start < len(lengths):
            rows = batch_size if batch_size != "auto" else max(1, tokens // max(1, lengths[start]))
            yield slice(start, start + rows)
            start += rows


@contextmanager
def _only_at(head: torch.nn.Module, places: Tensor) -> Iterator[None]:
    """Let the head project the hidden states at `places` alone.

    Where a vocabulary is large the head is most of the work, and few places are asked for. A hook,
    since what a family does after the head (soft-capping, scaling) must still be done.
    """

    def pick(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states = arguments[0]
        return (states.flatten(0, 1)[places][None], *arguments[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def _shared_length(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all rows begin with."""
    first, last = min(rows), max(rows)  # in lexical order: what these two share, all share
    for place, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return place
    return min(len(first), len(last))


def _padded(rows: Sequence[tuple[int, ...]], width: int, fill: int, device: Any) -> Tensor:
    return torch.tensor([row + (fill,) * (width - len(row)) for row in rows], device=device)


def _split(
    rows: Sequence[Row], numbers: Sequence[float], greedy: Sequence[bool]
) -> list[list[Found]]:
    found = []
    start = 0
    for row in rows:
        of_row = []
        for count in row.counts:
            part = slice(start, start + count)
            of_row.append((sum(numbers[part]), count, all(greedy[part])))
            start += count
        found.append(of_row)
    return found


def _window(config: Any) -> int:
    """The sliding window, 0 if there is none."""
    if getattr(config, "use_sliding_window", True) is False:
        return 0
    return int(getattr(config, "sliding_window", None) or 0)
