"""A batch of texts that grows by a token a step: what the model says next, for each of them.

Prompts are read in slices of similar length; their key-value caches are then joined into one batch,
padded on the left. A model without such a cache reads everything anew at every step.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from modelglue.evaluate.encoding import Tokens
from modelglue.evaluate.kvcache import KeyValueCache

# Prompt tokens of one slice: beyond it padding costs more than the larger batch saves.
_CPU_TOKENS, _GPU_TOKENS = 1024, 32768


class Batch(Protocol):
    """Rows of tokens, and the logits [rows, vocabulary] of what comes after each, in fp32."""

    logits: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these; `logits` are stale until the next `advance`."""
        ...

    def advance(self, tokens: Tensor) -> None:
        """Append a token to each row."""
        ...


def read(module: Any, prompts: Sequence[Tokens], room: int) -> Batch:
    """Read prompts, shortest first, that `room` tokens may be appended to."""
    if "past_key_values" in inspect.signature(module.forward).parameters:
        return _CachedBatch(module, prompts, room)
    return _RecomputedBatch(module, prompts)


class _CachedBatch:
    """Keys and values of what was read are kept."""

    def __init__(self, module: Any, prompts: Sequence[Tokens], room: int) -> None:
        self._module = module
        self._known = inspect.signature(module.forward).parameters
        device = module.device
        self._positions = torch.tensor([len(p) for p in prompts], device=device)
        width = len(prompts[-1])
        # 1 where a column of the cache holds a token of the row, 0 where it is padding.
        self._seen = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
        self._cache = KeyValueCache(module.config, width + room)
        self.logits = torch.cat(
            [
                self._read_slice(prompts[part], part)
                for part in self._slices([len(p) for p in prompts])
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
        width, longest = self._seen.shape[1], len(prompts[-1])
        ids = [(0,) * (longest - len(row)) + row for row in prompts]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in prompts]
        seen = torch.tensor(mask, device=self._seen.device)
        self._seen[part, width - longest :] = seen
        cache = self._cache.like(longest) if self._cache.can_join else self._cache
        positions = (seen.cumsum(dim=1) - 1).clamp_(min=0)
        logits = self._forward(torch.tensor(ids, device=seen.device), positions, seen, cache)
        if self._cache.can_join:
            self._cache.join(cache, part, rows=len(self._seen), width=width)
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
        self, ids: Tensor, positions: Tensor, seen: Tensor, cache: KeyValueCache
    ) -> Tensor:
        inputs: dict[str, Any] = {"attention_mask": seen}
        if "position_ids" in self._known:
            inputs["position_ids"] = positions
        if "logits_to_keep" in self._known:
            inputs["logits_to_keep"] = 1
        output = self._module(ids, past_key_values=cache.inner, use_cache=True, **inputs)
        logits: Tensor = output.logits[:, -1].float()
        return logits


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
        logits: Tensor = self._module(ids.to(self._module.device), use_cache=False).logits
        return logits[torch.arange(len(last)), last].float()
