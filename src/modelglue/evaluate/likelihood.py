"""Log-likelihoods of continuations, each context computed once for all of its continuations.

An item is one row: the tokens that its continuations share, then one branch a continuation. A tree
mask lets a branch see the shared tokens and itself, and position ids go on from the shared part:

    the sky is | blue today | grey        places 0 1 2 | 3 4 | 5    positions 0 1 2 | 3 4 | 3

What many items begin with (few-shot examples, say) is found by itself and computed once; the items
follow it several to a row, and none of them sees another. Where a model cannot take such masks, the
same items are scored as plain rows, one a continuation. What it can take is found out on a
miniature of it: some items are computed both ways, and the tree is used only if the two agree.
"""

import inspect
import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from modelglue.errors import EvaluationError, NonFiniteOutput
from modelglue.evaluate.encoding import Continued, Tokens
from modelglue.evaluate.kvcache import Prefix, bounds, read_prefix, window
from modelglue.evaluate.miniature import TOKENS, miniature
from modelglue.evaluate.model import Likelihood
from modelglue.evaluate.passes import BatchSize, Layout, Pass, Planner, placed
from modelglue.evaluate.tree import Found, Item, Rows, lay_out

# Numbers of plans that are remembered, the latest ones: 128 MB of them.
_REMEMBERED = 1 << 24

Items = Sequence[tuple[Continued, ...]]


def likelihoods(texts: Sequence[str], numbers: Sequence[Found]) -> list[Likelihood]:
    """What was found of an item's continuations, with the continuations' lengths."""
    return [
        Likelihood(total, tokens, len(text.encode()), greedy)
        for text, (total, tokens, greedy) in zip(texts, numbers, strict=True)
    ]


class LikelihoodScorer:
    """Scores items with one module, and remembers which layout its attention can take."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._config = module.config.get_text_config()
        # Where a mixture's layers are of several architectures, no one mask is right for all.
        self._takes_positions = "position_ids" in inspect.signature(
            module.forward
        ).parameters and not getattr(module.config, "expert_configs", None)
        # By layout, and by whether one of the model's bounds is exceeded: what is right below a
        # sliding window may be wrong above it.
        self._works: dict[tuple[Layout, bool], bool] = {}
        self._planner = Planner(module, self._takes)
        # A search scores the same items a hundred times with other weights. A plan is known by the
        # ids of its continuations, which its rows keep alive.
        self._plans: dict[Hashable, Sequence[Pass]] = {}
        self._held = 0  # numbers of those

    @torch.inference_mode()
    def score(self, items: Items, *, batch_size: BatchSize = "auto") -> list[list[Found]]:
        """Score every continuation of every item.

        Raises:
            NonFiniteOutput: the model gave NaN or infinity.
        """
        found = iter(self._scored(self._passes(items, batch_size)))
        return [[next(found) for _ in item] for item in items]

    def score_texts(
        self, windows: Sequence[Sequence[Continued]], *, batch_size: BatchSize = "auto"
    ) -> list[float]:
        """The log-likelihood of whole texts, each given as its windows."""
        items = [(window,) for of_text in windows for window in of_text]
        found = iter(self.score(items, batch_size=batch_size))
        return [sum(next(found)[0][0] for _ in of_text) for of_text in windows]

    def _passes(self, items: Items, batch_size: BatchSize) -> Iterator[Pass]:
        """What scores the items, pass by pass; remembered as far as there is room."""
        ids = tuple(tuple(map(id, item)) for item in items)
        key = (self._planner.device, batch_size, ids)
        if key in self._plans:
            yield from self._plans[key]
            return
        kept, size = list[Pass](), 0
        for each in self._planner.plan(items, batch_size):
            yield each
            size += each.numbers
            if size <= _REMEMBERED:
                kept.append(each)
        if size <= _REMEMBERED:
            self._keep(key, kept, size)

    def _keep(self, key: Hashable, plan: Sequence[Pass], size: int) -> None:
        self._held += size
        while self._held > _REMEMBERED:
            oldest = next(iter(self._plans))
            self._held -= sum(each.numbers for each in self._plans.pop(oldest))
        self._plans[key] = plan

    def _scored(self, passes: Iterable[Pass]) -> list[Found]:
        """What is found of all continuations of all items."""
        found: dict[int, Found] = {}
        for each in passes:
            prefix = None
            if each.prefix:
                room = max(rows.ids.shape[1] for rows in each.rows)
                prefix = read_prefix(self._module, each.prefix, room=room)
            numbers = [
                of_one
                for rows in each.rows
                for of_item in self._forward(rows, plain=each.layout == "plain", prefix=prefix)
                for of_one in of_item
            ]
            found |= zip(each.slots, numbers, strict=True)
        return [found[slot] for slot in range(len(found))]

    def _takes(self, layout: Layout, items: Sequence[Item]) -> bool:
        """Whether the model takes a layout, for items as deep as these."""
        deepest = max(item.depth for item in items)
        beyond = any(deepest > bound for bound in bounds(self._config))
        if (layout, beyond) not in self._works:
            self._works[layout, beyond] = self._takes_positions and miniature(self._module).takes(
                f"{layout}, {beyond}", lambda small: _tried(small, layout, beyond=beyond)
            )
        return self._works[layout, beyond]

    def _forward(
        self, rows: Rows, *, plain: bool = False, prefix: Prefix | None = None
    ) -> list[list[Found]]:
        if not len(rows.places):
            return rows.split([], [])
        inputs: dict[str, Any] = {"input_ids": rows.ids, "use_cache": prefix is not None}
        if not plain:
            inputs |= {"position_ids": rows.positions, "attention_mask": self._mask(rows)}
        if prefix is not None:
            inputs["past_key_values"] = prefix.cache()
        if self._planner.routes_samples:
            inputs |= self._routes(rows)
        logs = self._logits(inputs, rows.places).float().log_softmax(dim=-1)
        best = logs.amax(dim=-1)
        if not bool(best.isfinite().all()):
            raise NonFiniteOutput("the model's logits are not finite (NaN or infinity)")
        targets = rows.targets.to(logs.device)  # of a model on several devices, the head's
        numbers = logs.gather(1, targets[:, None])[:, 0]
        greedy = numbers == best
        # Of equals the first is the most likely one; few places come into question.
        greedy[greedy.clone()] = logs[greedy].argmax(dim=-1) == targets[greedy]
        return rows.split(numbers.double().tolist(), greedy.tolist())

    def _routes(self, rows: Rows) -> dict[str, Any]:
        """What a mixture that decides once a sample is to decide on, or has decided already."""
        opening = rows.items[0].opening
        if not opening:
            return {"routing_mask": rows.contexts}
        ids = torch.tensor([opening] * len(rows.ids), device=rows.ids.device)
        cache = self._module(ids, use_cache=True, logits_to_keep=1).past_key_values
        cache.crop(-len(opening))  # its routes stay
        return {"past_key_values": cache, "use_cache": True}

    def _logits(self, inputs: dict[str, Any], places: Tensor) -> Tensor:
        """The logits [n, vocabulary] at those places of the flattened batch."""
        with _only_at(self._module.get_output_embeddings(), places) as picked:
            logits: Tensor = self._module(**inputs).logits.flatten(0, 1)
        expected = len(places) if picked else inputs["input_ids"].numel()
        if len(logits) != expected:
            raise EvaluationError(
                f"{type(self._module).__name__} gives logits of {len(logits)} places where "
                f"{expected} were asked for; it cannot be scored"
            )
        return logits if picked else logits[places.to(logits.device)]

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


@contextmanager
def _only_at(head: torch.nn.Module | None, places: Tensor) -> Iterator[list[Tensor]]:
    """Let the head project the hidden states at `places` alone.

    Where a vocabulary is large the head is most of the work, and few places are asked for. A hook,
    since what a family does after the head (soft-capping, scaling) must still be done.

    Yields:
        What it was given; nothing where the model does its projection elsewhere.
    """
    picked: list[Tensor] = []

    def pick(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        states = arguments[0].flatten(0, 1)
        picked.append(states[places.to(states.device)][None])
        return (picked[-1], *arguments[1:])

    handle = None if head is None else head.register_forward_pre_hook(pick)
    try:
        yield picked
    finally:
        if handle is not None:
            handle.remove()


def _tried(small: Any, layout: Layout, *, beyond: bool) -> tuple[Tensor, Tensor]:
    """What plain rows and a layout give for two items of one beginning, with a miniature.

    More columns than a window holds, so that a window which counts columns shows itself.

    Args:
        beyond: whether texts are longer than the miniature's windows.
    """
    draw = random.Random(0)

    def some(count: int) -> Tokens:
        return tuple(draw.randrange(3, TOKENS) for _ in range(count))

    shared = some(24 if beyond else 6)
    items = []
    for lengths in ((4, 6, 5), (3, 6)):
        head = shared + some(2)
        items.append(lay_out([Continued(head + some(n), len(head)) for n in lengths]))
    scorer, planner = LikelihoodScorer(small), Planner(small, lambda *_: True)
    both = placed(items)
    other = planner.tree(both) if layout == "tree" else planner.behind(both, len(shared), "auto")
    plain, laid_out = (scorer._scored(way) for way in (planner.plain(both, "auto"), [other]))
    first, second = ([total for total, _, _ in found] for found in (plain, laid_out))
    return torch.tensor(first), torch.tensor(second)
