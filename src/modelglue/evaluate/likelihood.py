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
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from modelglue.errors import EvaluationError, NonFiniteOutput
from modelglue.evaluate.devices import input_device
from modelglue.evaluate.encoding import Continued, Tokens
from modelglue.evaluate.kvcache import Prefix, bounds, read_prefix, turned, turns, window
from modelglue.evaluate.miniature import TOKENS, miniature
from modelglue.evaluate.model import Likelihood
from modelglue.evaluate.tree import Found, Item, Rows, families, filled, lay_out, trees

# Tokens of one batch. More would not be faster on a CPU, where it is the caches that count.
_CPU_TOKENS, _GPU_TOKENS = 768, 32768
# Tokens of a row behind a prefix: enough to fill the processor, few enough that little is spent on
# columns that a place does not see.
_CPU_ROW, _GPU_ROW = 256, 2048
# Logits held at once, as numbers: 512 MB of fp32.
_MOST_LOGITS = 1 << 27
# Beyond this many tokens the laid out items are forgotten.
_REMEMBERED = 1 << 25

BatchSize = int | Literal["auto"]
Key = TypeVar("Key", bound=Hashable)
Layout = Literal["tree", "prefix"]


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
        # A mixture that decides once a sample: on the context, whatever the continuations are.
        self._routes_samples = bool(getattr(module.config, "routes_samples", False))
        # By layout, and by whether one of the model's bounds is exceeded: what is right below a
        # sliding window may be wrong above it.
        self._works: dict[tuple[Layout, bool], bool] = {}
        # A search scores the same items a hundred times with other weights.
        self._laid_out: dict[tuple[Continued, ...], tuple[Item, ...]] = {}
        self._held = 0  # tokens of those

    @torch.inference_mode()
    def score(
        self, items: Sequence[tuple[Continued, ...]], *, batch_size: BatchSize = "auto"
    ) -> list[list[Found]]:
        """Score every continuation of every item.

        Raises:
            NonFiniteOutput: the model gave NaN or infinity.
        """
        parts = [self._trees(item) for item in items]
        scored = iter(self._score([part for of_item in parts for part in of_item], batch_size))
        return [[found for _ in of_item for found in next(scored)] for of_item in parts]

    def score_texts(
        self, windows: Sequence[Sequence[Continued]], *, batch_size: BatchSize = "auto"
    ) -> list[float]:
        """The log-likelihood of whole texts, each given as its windows."""
        items = [(window,) for of_text in windows for window in of_text]
        found = iter(self.score(items, batch_size=batch_size))
        return [sum(next(found)[0][0] for _ in of_text) for of_text in windows]

    def _trees(self, item: tuple[Continued, ...]) -> tuple[Item, ...]:
        if item not in self._laid_out:
            tokens = sum(len(continued.tokens) for continued in item)
            if self._held + tokens > _REMEMBERED:
                self._laid_out, self._held = {}, 0
            self._held += tokens
            width = self._config.hidden_size
            self._laid_out[item] = trees(item, width, parts=turns(self._config))
        return self._laid_out[item]

    def _score(self, items: Sequence[Item], batch_size: BatchSize) -> list[list[Found]]:
        found: list[list[Found]] = [[] for _ in items]
        # The longest first, and none beside those that would be turned in another way by it, or
        # are routed in another.
        order = sorted(range(len(items)), key=lambda i: -items[i].length)
        for (turn, _), group in _grouped(order, lambda i: self._way(items[i])):
            # A beginning is read alone, and would be turned as a short text; items of one row
            # would share a route.
            alone = any(turn) or self._routes_samples
            apart = [] if alone else families([items[i] for i in group])
            for members, shared in apart:
                family = [group[place] for place in sorted(members)]
                scored = self._score_family([items[i] for i in family], shared, batch_size)
                for i, numbers in zip(family, scored, strict=False):
                    found[i] = numbers
            rest = [i for i in group if not found[i]]
            for batch in self._batches([items[i].length for i in rest], batch_size):
                chosen = rest[batch]
                scored = self._score_batch([items[i] for i in chosen], batch_size)
                for i, numbers in zip(chosen, scored, strict=True):
                    found[i] = numbers
        return found

    def _way(self, item: Item) -> tuple[tuple[bool, ...], Tokens]:
        """What items of one batch have in common."""
        opening = item.opening if self._routes_samples else ()
        return turned(self._config, item.depth), opening

    def _score_family(
        self, items: Sequence[Item], shared: int, batch_size: BatchSize
    ) -> list[list[Found]]:
        """The results of items that begin with as many equal tokens; none if the model refuses."""
        if not self._takes("prefix", items):
            return []
        capacity = _CPU_ROW if self._is_on_cpu else _GPU_ROW
        capacity = min(capacity, max(1, _MOST_LOGITS // self._config.vocab_size))
        most = None if batch_size == "auto" else batch_size
        rows = filled([item.length - shared for item in items], capacity, most)
        return self._forward_behind([items[row] for row in rows], shared)

    def _score_batch(self, items: Sequence[Item], batch_size: BatchSize) -> list[list[Found]]:
        if all(item.is_plain for item in items):
            return self._forward_plain(items)
        takes = self._takes("tree", items)
        return self._forward_tree(items) if takes else self._plain(items, batch_size)

    def _takes(self, layout: Layout, items: Sequence[Item]) -> bool:
        """Whether the model takes a layout, for items as deep as these."""
        deepest = max(item.depth for item in items)
        beyond = any(deepest > bound for bound in bounds(self._config))
        if (layout, beyond) not in self._works:
            self._works[layout, beyond] = self._takes_positions and miniature(self._module).takes(
                f"{layout}, {beyond}", lambda small: _tried(small, layout, beyond=beyond)
            )
        return self._works[layout, beyond]

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

    def _forward_plain(self, items: Sequence[Item]) -> list[list[Found]]:
        rows = Rows([[item] for item in items], input_device(self._module))
        return self._forward(rows, plain=True)

    def _forward_tree(self, items: Sequence[Item]) -> list[list[Found]]:
        return self._forward(Rows([[item] for item in items], input_device(self._module)))

    def _forward_behind(self, rows: Sequence[Sequence[Item]], shared: int) -> list[list[Found]]:
        """Rows of items behind the `shared` tokens that all of them begin with."""
        room = max(sum(item.length - shared for item in row) for row in rows)
        prefix = read_prefix(self._module, rows[0][0].trunk[:shared], room=room)
        found = []
        for row in rows:
            found += self._forward(
                Rows([row], input_device(self._module), skipped=shared), prefix=prefix
            )
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
            inputs |= self._routes(rows)
        if not len(rows.places):
            return rows.split([], [])
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
        return bool(input_device(self._module).type == "cpu")


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


def _grouped(order: Sequence[int], key: Callable[[int], Key]) -> list[tuple[Key, list[int]]]:
    """The numbers by their key, each group in their order."""
    groups: dict[Key, list[int]] = {}
    for i in order:
        groups.setdefault(key(i), []).append(i)
    return list(groups.items())


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
    scorer = LikelihoodScorer(small)
    plain = scorer._plain(items, "auto")
    if layout == "tree":
        other = scorer._forward_tree(items)
    else:
        other = scorer._forward_behind([items], len(shared))
    first, second = ([total for one in found for total, _, _ in one] for found in (plain, other))
    return torch.tensor(first), torch.tensor(second)
