"""Log-likelihoods of continuations, each context computed once for all of its continuations.

An item is one row: the tokens that its continuations share, then one branch a continuation. A tree
mask lets a branch see the shared tokens and itself, and position ids go on from the shared part:

    the sky is | blue today | grey        places 0 1 2 | 3 4 | 5    positions 0 1 2 | 3 4 | 3

What many items begin with (few-shot examples, say) is found by itself and computed once; the items
follow it several to a row, and none of them sees another. Where a model cannot take such masks, the
same items are scored as plain rows, one a continuation. What it can take is found out on the first
batch: some items are computed both ways, and the tree is used only if the two agree.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from modelglue.errors import EvaluationError, NonFiniteOutput
from modelglue.evaluate.encoding import Continued
from modelglue.evaluate.kvcache import Prefix, bounds, read_prefix, window
from modelglue.evaluate.tree import Found, Item, Rows, families, filled, lay_out, trees

# Tokens of one batch. More would not be faster on a CPU, where it is the caches that count.
_CPU_TOKENS, _GPU_TOKENS = 768, 32768
# Tokens of a row behind a prefix: enough to fill the processor, few enough that little is spent on
# columns that a place does not see.
_CPU_ROW, _GPU_ROW = 256, 2048
# Logits held at once, as numbers: 512 MB of fp32.
_MOST_LOGITS = 1 << 27
# How far the two ways may be apart, per token: rounding, not another result. In half precision
# single tokens are apart by a tenth; there it is the mean that counts.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_COARSE_TOLERANCE = 0.05
# Tokens of a shared beginning, and of a context behind it, with which a layout is tried.
_TRIED_TOKENS = 8

BatchSize = int | Literal["auto"]


class LikelihoodScorer:
    """Scores items with one module, and remembers which layout its attention can take."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._config = module.config.get_text_config()
        # Where a mixture's layers are of several architectures, no one mask is right for all.
        self._takes_positions = "position_ids" in inspect.signature(
            module.forward
        ).parameters and not getattr(module.config, "expert_configs", None)
        # A mixture that decides once a sample: on the context, whatever the continuations are.
        self._routes_samples = bool(getattr(module.config, "routes_samples", False))
        # By layout, and by which of the model's bounds are exceeded: what is right below a sliding
        # window may be wrong above it.
        self._works: dict[tuple[str, tuple[bool, ...]], bool] = {}

    @torch.inference_mode()
    def score(
        self, items: Sequence[Sequence[Continued]], *, batch_size: BatchSize = "auto"
    ) -> list[list[Found]]:
        """Score every continuation of every item.

        Raises:
            NonFiniteOutput: the model gave NaN or infinity.
        """
        width = self._config.hidden_size
        parts = [trees(item, width) for item in items]
        scored = iter(self._score([part for of_item in parts for part in of_item], batch_size))
        return [[found for _ in of_item for found in next(scored)] for of_item in parts]

    def _score(self, items: Sequence[Item], batch_size: BatchSize) -> list[list[Found]]:
        found: list[list[Found]] = [[] for _ in items]
        order = sorted(range(len(items)), key=lambda i: -items[i].length)  # the longest first
        # Items of one row would share a route.
        alike = [] if self._routes_samples else families([items[i] for i in order])
        for members, shared in alike:
            family = [order[place] for place in sorted(members)]
            scored = self._score_family([items[i] for i in family], shared, batch_size)
            for i, numbers in zip(family, scored, strict=False):
                found[i] = numbers
        rest = [i for i in order if not found[i]]
        for batch in self._batches([items[i].length for i in rest], batch_size):
            chosen = rest[batch]
            scored = self._score_batch([items[i] for i in chosen], batch_size)
            for i, numbers in zip(chosen, scored, strict=True):
                found[i] = numbers
        return found

    def _score_family(
        self, items: Sequence[Item], shared: int, batch_size: BatchSize
    ) -> list[list[Found]]:
        """The results of items that begin with as many equal tokens; none if the model refuses."""
        regime = self._regime(items)
        key = ("prefix", regime)
        if key not in self._works:
            kept = shared if any(regime) else min(shared, _TRIED_TOKENS)
            self._works[key] = self._agrees(
                self._sample(items, shared), lambda row: self._forward_behind([row], kept)
            )
        if not self._works[key]:
            return []
        capacity = _CPU_ROW if self._is_on_cpu else _GPU_ROW
        capacity = min(capacity, max(1, _MOST_LOGITS // self._config.vocab_size))
        most = None if batch_size == "auto" else batch_size
        rows = filled([item.length - shared for item in items], capacity, most)
        return self._forward_behind([items[row] for row in rows], shared)

    def _score_batch(self, items: Sequence[Item], batch_size: BatchSize) -> list[list[Found]]:
        if all(item.is_plain for item in items):
            return self._forward_plain(items)
        key = ("tree", self._regime(items))
        if key not in self._works:
            self._works[key] = self._agrees(self._sample(items), self._forward_tree)
        return self._forward_tree(items) if self._works[key] else self._plain(items, batch_size)

    def _plain(self, items: Sequence[Item], batch_size: BatchSize) -> list[list[Found]]:
        """One row a continuation, padded on the right, which a causal model never looks at."""
        alone = [lay_out([continued]) for item in items for continued in item.continuations]
        order = sorted(range(len(alone)), key=lambda i: -alone[i].length)
        found: list[Found] = [(0.0, 0, True)] * len(alone)
        for batch in self._batches([alone[i].length for i in order], batch_size):
            chosen = order[batch]
            scored = self._forward_plain([alone[i] for i in chosen])
            for i, numbers in zip(chosen, scored, strict=True):
                found[i] = numbers[0]
        flat = iter(found)
        return [[next(flat) for _ in item.continuations] for item in items]

    def _sample(self, items: Sequence[Item], shared: int = 0) -> list[Item]:
        """What a layout is tried with: the deepest item, and a short one that branches if any does.

        Below all bounds a short context tells as much as a long one, and costs less.
        """
        deepest = max(items, key=lambda item: item.depth)
        others = [item for item in items if item is not deepest]
        short = sorted(others, key=lambda item: (item.is_plain, item.length))[:1]
        if any(self._regime(items)):
            return [deepest, *short]
        return [_shortened(item, shared) for item in (deepest, *short)]

    def _agrees(
        self, items: Sequence[Item], forward: Callable[[Sequence[Item]], list[list[Found]]]
    ) -> bool:
        """Whether a layout gives what plain rows give."""
        if not self._takes_positions:
            return False
        plain = self._plain(items, "auto")
        try:
            tried = forward(items)
        except (EvaluationError, RuntimeError, ValueError, TypeError, AttributeError, LookupError):
            return False  # the model's way of saying that it takes no such mask
        apart = [
            abs(a[0] - b[0]) / max(1, a[1])
            for one, other in zip(plain, tried, strict=True)
            for a, b in zip(one, other, strict=True)
        ]
        tolerance = _TOLERANCE.get(self._module.dtype)
        if tolerance is not None:
            return max(apart) <= tolerance
        return sum(apart) <= _COARSE_TOLERANCE * len(apart)

    def _forward_plain(self, items: Sequence[Item]) -> list[list[Found]]:
        rows = Rows([[item] for item in items], self._module.device)
        return self._forward(rows, plain=True)

    def _forward_tree(self, items: Sequence[Item]) -> list[list[Found]]:
        return self._forward(Rows([[item] for item in items], self._module.device))

    def _forward_behind(self, rows: Sequence[Sequence[Item]], shared: int) -> list[list[Found]]:
        """Rows of items behind the `shared` tokens that all of them begin with."""
        room = max(sum(item.length - shared for item in row) for row in rows)
        prefix = read_prefix(self._module, rows[0][0].trunk[:shared], room=room)
        found = []
        for row in rows:
            found += self._forward(Rows([row], self._module.device, skipped=shared), prefix=prefix)
        return found

    def _forward(
        self, rows: Rows, *, plain: bool = False, prefix: Prefix | None = None
    ) -> list[list[Found]]:
        inputs: dict[str, Any] = {"input_ids": rows.ids, "use_cache": prefix is not None}
        if not plain:
            inputs |= {"position_ids": rows.positions, "attention_mask": self._mask(rows)}
        if prefix is not None:
            inputs["past_key_values"] = prefix.cache()
        if self._routes_samples:
            inputs["routing_mask"] = rows.contexts
        if not len(rows.places):
            return rows.split([], [])
        logs = self._logits(inputs, rows.places).float().log_softmax(dim=-1)
        best = logs.amax(dim=-1)
        if not bool(best.isfinite().all()):
            raise NonFiniteOutput("the model's logits are not finite (NaN or infinity)")
        numbers = logs.gather(1, rows.targets[:, None])[:, 0]
        greedy = numbers == best
        # Of equals the first is the most likely one; few places come into question.
        greedy[greedy.clone()] = logs[greedy].argmax(dim=-1) == rows.targets[greedy]
        return rows.split(numbers.double().tolist(), greedy.tolist())

    def _logits(self, inputs: dict[str, Any], places: Tensor) -> Tensor:
        """The logits [n, vocabulary] at those places of the flattened batch."""
        head = self._module.get_output_embeddings()
        if head is None:
            logits: Tensor = self._module(**inputs).logits
            return logits.flatten(0, 1)[places]
        with _only_at(head, places):
            logits = self._module(**inputs).logits
        return logits.flatten(0, 1)

    def _mask(self, rows: Rows) -> Tensor | dict[str, Tensor]:
        """The tree mask; by kind of layer where they differ."""
        dtype = self._module.dtype
        near = window(self._config)
        layers = set(getattr(self._config, "layer_types", None) or ["sliding_attention"])
        if layers == {"full_attention"} or int(rows.positions.max()) < near or not near:
            return rows.mask(dtype)
        sliding = rows.mask(dtype, near)
        if layers == {"sliding_attention"}:
            return sliding
        return {"full_attention": rows.mask(dtype), "sliding_attention": sliding}

    def _regime(self, items: Sequence[Item]) -> tuple[bool, ...]:
        """Which of the lengths at which the model changes its ways are exceeded."""
        deepest = max(item.depth for item in items)
        return tuple(deepest > bound for bound in bounds(self._config))

    def _batches(self, lengths: Sequence[int], batch_size: BatchSize) -> Iterator[slice]:
        """Slices of rows sorted by falling length, so that little of a batch is padding."""
        tokens = _CPU_TOKENS if self._is_on_cpu else _GPU_TOKENS
        tokens = min(tokens, max(1, _MOST_LOGITS // self._config.vocab_size))
        start = 0
        while start < len(lengths):
            rows = batch_size if batch_size != "auto" else max(1, tokens // max(1, lengths[start]))
            yield slice(start, start + rows)
            start += rows

    @property
    def _is_on_cpu(self) -> bool:
        return bool(self._module.device.type == "cpu")


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


def _shortened(item: Item, shared: int) -> Item:
    """An item that keeps a few tokens of its beginning and a few before its continuations."""
    begin = max(0, shared - _TRIED_TOKENS)
    end = max(shared, len(item.head) - _TRIED_TOKENS)
    return lay_out(
        [
            Continued(c.tokens[begin:shared] + c.tokens[end:], c.start - begin - (end - shared))
            for c in item.continuations
        ]
    )
