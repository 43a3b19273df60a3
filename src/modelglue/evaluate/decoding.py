"""A batch of texts that grows by a token a step: what the model says next, for each of them.

Prompts are read in slices of similar length; their key-value caches are then joined into one batch,
padded on the left. What all prompts begin with (few-shot examples, say) is read once, and padding
stands behind it. A model without such a cache reads everything anew at every step.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from modelglue.evaluate.devices import input_device
from modelglue.evaluate.encoding import Tokens
from modelglue.evaluate.kvcache import KeyValueCache, beyond, bounds, read_prefix, turned, turns
from modelglue.evaluate.miniature import miniature
from modelglue.evaluate.tree import shared_length

# Prompt tokens of one slice: beyond it padding costs more than the larger batch saves.
_CPU_TOKENS, _GPU_TOKENS = 1024, 32768
# Prompt tokens that reading a beginning once must save.
_SAVED_TOKENS = 256


class Batch(Protocol):
    """Rows of tokens, and the logits [rows, vocabulary] of what comes after each, in fp32."""

    logits: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these; `logits` are stale until the next `advance`."""
        ...

    def advance(self, tokens: Tensor) -> None:
        """Append a token to each row."""
        ...


def batches(module: Any, lengths: Sequence[int], room: int, most: int) -> Iterator[slice]:
    """Prompts of rising length, parted into batches of at most so many.

    Those are together whose positions mean the same from their beginning to their end; a prompt
    for which that changes on the way stands alone.
    """
    at = turns(module.config.get_text_config())
    ways = [(beyond(at, length), beyond(at, length + room)) for length in lengths]
    start = 0
    for end in range(1, len(lengths) + 1):
        full = end == len(lengths) or end - start == most
        if full or ways[end] != ways[start] or ways[start][0] != ways[start][1]:
            yield slice(start, end)
            start = end


def read(module: Any, prompts: Sequence[Tokens], room: int) -> Batch:
    """Read prompts, shortest first, that `room` tokens may be appended to.

    They are one of `batches`.
    """
    if "past_key_values" not in inspect.signature(module.forward).parameters:
        return _RecomputedBatch(module, prompts)
    config = module.config.get_text_config()
    if turned(config, len(prompts[0])) != turned(config, len(prompts[0]) + room):
        return _TurningRow(module, prompts[0], room)
    shared = _shared(module, prompts, room)
    return _CachedBatch(module, prompts, room, shared=shared)


def _shared(module: Any, prompts: Sequence[Tokens], room: int) -> int:
    """How many tokens all prompts begin with, if it is worth reading them once; else 0."""
    if "position_ids" not in inspect.signature(module.forward).parameters:
        return 0
    longest = len(prompts[-1]) + room
    # Windows count columns, padding included.
    if any(longest > bound for bound in bounds(module.config.get_text_config())):
        return 0
    shared = min(shared_length(min(prompts), max(prompts)), len(prompts[0]) - 1)
    if shared * (len(prompts) - 1) < _SAVED_TOKENS or not KeyValueCache(module.config, 0).can_join:
        return 0
    return shared if miniature(module).takes("padding", _tried) else 0


def _tried(small: Any) -> tuple[Tensor, Tensor]:
    """What comes after a short prompt, alone and with padding amid its text, a token later."""
    shared = (3, 14, 15, 9, 26)
    short, long = (*shared, 5, 35), (*shared, 8, 9, 7, 9, 32, 38, 46, 26, 43)
    alone = _CachedBatch(small, [short], 1)
    padded = _CachedBatch(small, [short, long], 1, shared=len(shared))
    token = alone.logits.argmax(dim=-1)
    alone.advance(token)
    padded.advance(token.expand(2))
    return alone.logits[0], padded.logits[0]


class _CachedBatch:
    """Keys and values of what was read are kept."""

    def __init__(
        self,
        module: Any,
        prompts: Sequence[Tokens],
        room: int,
        *,
        shared: int = 0,
        routed: int | None = None,
    ) -> None:
        self._module = module
        self._shared = shared
        # Of the tokens read at first those that a mixture's route is decided on; None for all.
        self._routed = routed
        self._prefix = read_prefix(module, prompts[0][:shared]) if shared else None
        self._known = inspect.signature(module.forward).parameters
        device = input_device(module)
        self._positions = torch.tensor([len(p) for p in prompts], device=device)
        width = len(prompts[-1])
        # 1 where a column of the cache holds a token of the row, 0 where it is padding.
        self._seen = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
        self._seen[:, :shared] = 1
        self._cache = KeyValueCache(module.config, width + room)
        self.logits = torch.cat(
            [
                self._read_slice([prompt[shared:] for prompt in prompts[part]], part)
                for part in self._slices([len(prompt) - shared for prompt in prompts])
            ]
        )

    def keep(self, rows: Tensor) -> None:
        self._cache.select(rows)
        self._positions, self._seen = self._positions[rows], self._seen[rows]

    def advance(self, tokens: Tensor) -> None:
        self._seen = torch.cat([self._seen, self._seen.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._forward(
            tokens[:, None], self._positions[:, None], self._seen, self._cache
        )
        self._positions = self._positions + 1

    def _read_slice(self, prompts: Sequence[Tokens], part: slice) -> Tensor:
        width, longest, shared = self._seen.shape[1], len(prompts[-1]), self._shared
        ids = [(0,) * (longest - len(row)) + row for row in prompts]
        padding = torch.tensor([longest - len(row) for row in prompts], device=self._seen.device)
        columns = torch.arange(longest, device=self._seen.device)
        seen = (columns >= padding[:, None]).long()
        self._seen[part, width - longest :] = seen
        positions = (seen.cumsum(dim=1) - 1).clamp_(min=0) + shared
        if self._prefix is not None:
            cache = self._prefix.begin(shared + longest, len(prompts))
            seen = torch.cat([seen.new_ones(len(prompts), shared), seen], dim=1)
        elif self._cache.can_join:
            rows = len(self._seen)
            cache = self._cache.within(part, rows=rows, width=width, columns=longest)
        else:
            cache = self._cache
        logits = self._forward(
            torch.tensor(ids, device=seen.device), positions, seen, cache, routed=self._routed
        )
        if self._prefix is not None:
            self._cache.join(cache, part, rows=len(self._seen), width=width, shared=shared)
        return logits

    def _slices(self, lengths: Sequence[int]) -> list[slice]:
        """Prompts of rising length, parted so that a slice, padded, has a bounded size."""
        if not self._cache.can_join:
            return [slice(0, len(lengths))]
        most = _CPU_TOKENS if self._module.device.type == "cpu" else _GPU_TOKENS
        slices, start = [], 0
        for end in range(1, len(lengths) + 1):
            if end == len(lengths) or (end + 1 - start) * lengths[end] > most:
                slices.append(slice(start, end))
                start = end
        return slices

    def _forward(
        self,
        ids: Tensor,
        positions: Tensor,
        seen: Tensor,
        cache: KeyValueCache,
        *,
        routed: int | None = None,
    ) -> Tensor:
        inputs: dict[str, Any] = {"attention_mask": seen}
        if routed is not None and "routing_mask" in self._known:
            inputs["routing_mask"] = torch.ones_like(seen)
            inputs["routing_mask"][:, routed:] = 0
        if "position_ids" in self._known:
            inputs["position_ids"] = positions
        if "logits_to_keep" in self._known:
            inputs["logits_to_keep"] = 1
        output = self._module(ids, past_key_values=cache.inner, use_cache=True, **inputs)
        logits: Tensor = output.logits[:, -1].to(ids.device).float()
        return logits


class _TurningRow:
    """One text at whose growth the model changes what positions mean.

    What was read before then means nothing any more, and is read again, as transformers does; a
    mixture decides its route again, and again on the prompt alone.
    """

    def __init__(self, module: Any, prompt: Tokens, room: int) -> None:
        self._module, self._row, self._most = module, prompt, len(prompt) + room
        self._prompt = len(prompt)
        self._config = module.config.get_text_config()
        self._batch = self._read()
        self.logits = self._batch.logits

    def keep(self, rows: Tensor) -> None:
        """It is the only row."""

    def advance(self, tokens: Tensor) -> None:
        before = turned(self._config, len(self._row))
        self._row = (*self._row, *tokens.tolist())
        if turned(self._config, len(self._row)) != before:
            self._batch = self._read()
        else:
            self._batch.advance(tokens)
        self.logits = self._batch.logits

    def _read(self) -> "_CachedBatch":
        room = self._most - len(self._row)
        return _CachedBatch(self._module, [self._row], room, routed=self._prompt)


class _RecomputedBatch:
    """For models that keep something else than keys and values: slow, and always right."""

    def __init__(self, module: Any, prompts: Sequence[Tokens]) -> None:
        self._module = module
        self._rows = [list(prompt) for prompt in prompts]
        self.logits = self._forward()

    def keep(self, rows: Tensor) -> None:
        self._rows = [self._rows[row] for row in rows.tolist()]

    def advance(self, tokens: Tensor) -> None:
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            row.append(token)
        self.logits = self._forward()

    def _forward(self) -> Tensor:
        """Padded on the right, which a causal model never looks at."""
        width = max(map(len, self._rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in self._rows])
        last = torch.tensor([len(row) - 1 for row in self._rows])
        logits: Tensor = self._module(ids.to(input_device(self._module)), use_cache=False).logits
        return logits[torch.arange(len(last)), last].float()
