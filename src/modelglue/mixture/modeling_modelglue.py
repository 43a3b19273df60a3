"""A mixture in one checkpoint: a stock model in whose layers experts stand behind routers.

    ffn     the feed-forward module of each layer is a list of experts
    block   each decoder layer is a list of experts
    model   as block, but one router decides for all layers; final norm and head by expert

The bottom `shared_layers` are the dense model's, and so is whatever is no expert's. Routers see the
state that enters what they route to: token by token, or its mean over a prompt (a *sample*).

A sample's route is decided when its prompt is read, padding left out, and lies in the cache from
then on: it stays when tokens, beams or a further turn follow. Without a cache `generate` says which
columns are the prompt. Every expert layer keeps the keys and values of its own rows alone, so that
it sees what it would see if it were the only one.

This file needs torch and transformers only, and travels in every checkpoint that it can load.
"""

import copy
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

# What families call the feed-forward module of a layer, the norm after it, and the final norm.
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "shared_mlp")
_NORM_AFTER = ("post_feedforward_layernorm", "post_mlp_layernorm")
_FINAL_NORM = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "final_norm")
_AFTER_NORM = ("project_out",)

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Of a call: by position, and by name."""


class ModelglueMixtureConfig(PreTrainedConfig):  # type: ignore[misc]
    """The dense model's configuration, and what is mixed.

    Args:
        text_config: of the stock model.
        modelglue: `kind` (level, router, input, top_k, shared_layers), `experts` (their names), and
            for MLP routers `router_size`; `own_head` where experts have heads of their own.
        expert_configs: one an expert, None where it computes as the dense model does.
        router_aux_loss_coef: weight of the load-balancing loss in training.
    """

    model_type = "modelglue_mixture"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = ("past_key_values", "aux_loss", "router_logits")

    def __init__(
        self,
        text_config: Any = None,
        modelglue: Mapping[str, Any] | None = None,
        expert_configs: Sequence[dict[str, Any] | None] | None = None,
        router_aux_loss_coef: float = 0.0,
        **kwargs: Any,
    ) -> None:
        text_config = {"model_type": "llama"} if text_config is None else text_config
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        kind = {"level": "block", "router": "linear", "input": "sample", "top_k": 1}
        self.modelglue = dict(modelglue or {"kind": kind, "experts": ["0"]})
        self.expert_configs = list(expert_configs or [])
        self.router_aux_loss_coef = router_aux_loss_coef
        super().__init__(**kwargs)

    @property
    def kind(self) -> dict[str, Any]:
        """Level, router, input, top_k, shared_layers."""
        return {"top_k": 1, "shared_layers": 0, **self.modelglue["kind"]}

    @property
    def routes_samples(self) -> bool:
        """Whether a route holds for a whole sample."""
        return bool(self.kind["input"] == "sample")

    @property
    def num_local_experts(self) -> int:
        """How many experts there are."""
        return len(self.modelglue["experts"])

    @property
    def num_experts_per_tok(self) -> int:
        """How many of them answer together."""
        return int(self.kind["top_k"])


@dataclass
class MixtureOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """What a causal language model says, and how it was routed.

    Attributes:
        aux_loss: the load-balancing loss, 1 where all experts are used alike (Switch Transformers,
            arXiv 2101.03961, eq. 4); in training, or where router logits are asked for.
        router_logits: of each router that decided in this call, [samples or tokens, experts].
    """

    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


@dataclass
class Choice:
    """Who answers each of n samples or tokens.

    Attributes:
        experts: [n, top_k].
        weights: [n, top_k], summing to 1; None stands for 1. With one expert a sample it is always
            1, and lets the gradient reach the router (1 + p − p.detach()).
    """

    experts: Tensor
    weights: Tensor | None = None
    _groups: list[tuple[int, Tensor | None, Tensor | None]] | None = None

    @property
    def groups(self) -> list[tuple[int, Tensor | None, Tensor | None]]:
        """(expert, its rows, which of their top_k places it has); None where it has all rows."""
        if self._groups is None:
            distinct = sorted(set(self.experts.flatten().tolist()))
            if len(distinct) == 1:
                self._groups = [(distinct[0], None, None)]
            else:
                self._groups = [
                    (expert, *(self.experts == expert).nonzero(as_tuple=True))
                    for expert in distinct
                ]
        return self._groups

    def of(self, index: Tensor) -> "Choice":
        """The choice for other rows: those numbers of these."""
        index = index.to(self.experts.device)
        return Choice(self.experts[index], None if self.weights is None else self.weights[index])

    def kept(self) -> "Choice":
        """To be used again later, without gradients."""
        weights = None if self.weights is None else self.weights.detach()
        return Choice(self.experts, weights, self._groups)


def choose(logits: Tensor, top_k: int) -> Choice:
    """The top_k experts of each row of logits [n, experts]."""
    probabilities = logits.softmax(dim=-1)
    top, experts = probabilities.topk(top_k, dim=-1)
    if top_k > 1:
        return Choice(experts, top / top.sum(dim=-1, keepdim=True))
    # In this order the number is exactly 1.
    return Choice(experts, 1 + (top - top.detach()) if top.requires_grad else None)


def make_router(features: int, experts: int, hidden: int | None) -> nn.Module:
    """Linear, or two layers with ReLU."""
    if hidden is None:
        return nn.Linear(features, experts)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, experts))


def router_logits(router: nn.Module, features: Tensor) -> Tensor:
    """[n, features] → [n, experts] in fp32, whatever the model computes in."""
    with torch.autocast(features.device.type, enabled=False):
        logits: Tensor = router(features.to(next(router.parameters()).dtype)).float()
    return logits


class RoutedCacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """Stands in a cache for a mixed layer: its route, and the keys and values of each part.

    Args:
        choice: whose rows are whose.
        parts: expert → a cache layer of its rows; or the only one, of all rows, where experts
            share the attention.
        empty: what stood there before, where experts have attention of their own.
    """

    def __init__(self, choice: Choice, parts: dict[int, Any], *, empty: Any = None) -> None:
        super().__init__()
        self.choice: Choice | None = choice
        self.parts = parts
        self.empty = empty

    @property
    def some_part(self) -> Any:
        """Any of them: all have read the same number of columns."""
        return next(iter(self.parts.values()))

    @property
    def is_sliding(self) -> Any:
        """As the layer that it stands for."""
        return getattr(self.some_part, "is_sliding", False)

    @property
    def is_croppable(self) -> bool:
        """Whether a rollback leaves no trace."""
        return all(part.is_croppable for part in self.parts.values())

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Parts do that themselves."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take in keys and values of all rows."""
        return self.some_part.update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> Any:
        """How many columns were read."""
        return self.some_part.get_seq_length()

    def get_mask_sizes(self, query_length: int) -> Any:
        """(columns, the first of them)."""
        return self.some_part.get_mask_sizes(query_length)

    def get_max_length(self) -> Any:
        """The most columns, −1 for no limit."""
        return self.some_part.get_max_length()

    get_max_cache_shape = get_max_length  # what transformers called it before

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last columns; routes stay."""
        for part in self.parts.values():
            part.crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Keep what sliding windows leave behind, until the next `crop`."""
        for part in self.parts.values():
            if hasattr(part, "activate_past_recording"):
                part.activate_past_recording()

    def reset(self) -> None:
        """Forget everything, routes as well."""
        self.choice = None
        for part in self.parts.values():
            part.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make row i of what row beam_idx[i] was; its route comes with it."""
        if self.choice is None:
            return
        if self.empty is None:
            self.some_part.reorder_cache(beam_idx)
        else:
            owner = self.choice.experts[:, 0]
            place = torch.zeros_like(owner)  # of a row among its expert's
            for expert in self.parts:
                own = owner == expert
                place[own] = torch.arange(int(own.sum()), device=owner.device)
            taken = beam_idx.to(owner.device)
            for expert in list(self.parts):
                rows = place[taken][owner[taken] == expert]
                if len(rows):
                    self.parts[expert].reorder_cache(rows)
                else:
                    del self.parts[expert]
        self.choice = self.choice.of(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Make so many rows of each."""
        if self.choice is not None:
            self.reorder_cache(torch.arange(len(self.choice.experts)).repeat_interleave(repeats))


@dataclass
class Routing:
    """What the mixing modules of one forward pass share.

    Attributes:
        counted: [rows, columns], 1 where a token counts for its row's route; None: all do.
        real: the same for what is no padding.
        cache: the cache that is read and written.
        past: columns that it held before.
        whole: whether what layers return is wanted, row by row.
        inputs: positions and mask, as they were given.
        decided: (logits, which of them are no padding), one a decision.
        chosen: the choice that holds for the layers after it.
        contexts: what a model of other architecture gives its layers, by expert.
    """

    counted: Tensor | None = None
    real: Tensor | None = None
    cache: Any = None
    past: int = 0
    whole: bool = False
    inputs: dict[str, Any] = field(default_factory=dict)
    decided: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    chosen: Choice | None = None
    contexts: dict[int, list[_Arguments]] = field(default_factory=dict)

    def slot(self, index: int) -> Any:
        """The cache's layer of that number; None without a cache."""
        if self.cache is None:
            return None
        while len(self.cache.layers) <= index:  # a cache that was made without a configuration
            self.cache.layers.append(self.cache.layer_class_to_replicate())
        return self.cache.layers[index]

    def frozen(self, index: int) -> Choice | None:
        """The route that the cache holds for a layer."""
        slot = self.slot(index)
        return slot.choice if isinstance(slot, RoutedCacheLayer) else None

    def pooled(self, states: Tensor) -> Tensor:
        """[rows, columns, width] → fp32 [rows, width], the mean over the tokens that count."""
        if self.counted is None:
            return states.float().mean(dim=1)
        counted = self.counted.to(states.device)
        kept = states.float().masked_fill(counted[:, :, None] == 0, 0.0)
        return kept.sum(dim=1) / counted.sum(dim=1, keepdim=True).clamp(min=1)

    def decide(
        self, router: nn.Module, features: Tensor, top_k: int, real: Tensor | None = None
    ) -> Choice:
        """Route rows of features [n, width]."""
        logits = router_logits(router, features)
        self.decided.append((logits, real))
        return choose(logits, top_k)


_ROUTING: ContextVar[Routing | None] = ContextVar("modelglue_routing", default=None)
_FILLED = (
    "past_key_values was filled by another model; a mixture routes a prompt when it reads it, so "
    "let it read all of it"
)


class MixedFeedForward(nn.Module):
    """Experts in the place of a layer's feed-forward module.

    Args:
        index: of the layer.
        norm: stands after it in the layer, if any does.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        router: nn.Module,
        *,
        index: int,
        top_k: int,
        by_token: bool,
        norm: nn.Module | None,
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = router
        self._index, self._top_k, self._by_token = index, top_k, by_token
        # A norm would cancel the weight of a single expert, and the router's gradient with it.
        self._weighs_later = norm is not None and top_k == 1
        self._later: Tensor | None = None
        self._last = Routing()
        if self._weighs_later and norm is not None:
            norm.register_forward_hook(self._weigh)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """[rows, columns, width] → the same."""
        routing = _ROUTING.get() or self._last
        if self.training:  # gradient checkpointing calls again after the forward pass
            self._last = Routing(routing.counted, routing.real)
        units = hidden_states
        if self._by_token:
            # One column a row: tokens are then chosen as samples are.
            units = hidden_states.reshape(-1, 1, hidden_states.shape[-1])
            real = None if routing.real is None else routing.real.reshape(-1)
            choice = routing.decide(self.router, units[:, 0], self._top_k, real)
        else:
            choice = self._for_samples(routing, hidden_states)
        groups = choice.groups
        if len(groups) == 1 and choice.weights is None:
            return self.experts[groups[0][0]](hidden_states, *args, **kwargs)
        mixed = self._mixed(units, choice).reshape(hidden_states.shape)
        if self._weighs_later and choice.weights is not None:
            self._later = choice.weights.reshape(len(hidden_states), -1, 1)
        return mixed

    def _for_samples(self, routing: Routing, states: Tensor) -> Choice:
        choice = routing.frozen(self._index)
        if choice is None:
            if routing.past:
                raise ValueError(_FILLED)
            choice = routing.decide(self.router, routing.pooled(states), self._top_k)
            if (slot := routing.slot(self._index)) is not None:
                slot = slot.some_part if isinstance(slot, RoutedCacheLayer) else slot
                routing.cache.layers[self._index] = RoutedCacheLayer(choice.kept(), {0: slot})
        return choice

    def _mixed(self, units: Tensor, choice: Choice) -> Tensor:
        mixed: Tensor | None = None
        for expert, rows, places in choice.groups:
            some = None if rows is None or len(rows) == len(units) else rows
            # The router may stand on another device than what it routes.
            some = None if some is None else some.to(units.device)
            out: Tensor = self.experts[expert](units if some is None else units[some])
            out = out.to(units.device)
            if choice.weights is not None and not self._weighs_later:
                weights = choice.weights if rows is None else choice.weights[rows, places]
                out = out * weights.reshape(-1, 1, 1).to(out)
            if some is None:
                mixed = out if mixed is None else mixed + out
            else:
                mixed = torch.zeros_like(units) if mixed is None else mixed
                mixed = mixed.index_add(0, some, out.to(mixed.dtype))
        assert mixed is not None
        return mixed

    def _weigh(self, _norm: nn.Module, _args: Any, output: Tensor) -> Tensor:
        later, self._later = self._later, None
        return output if later is None else output * later.to(output)


class MixedLayer(nn.Module):
    """Experts in the place of a decoder layer, one for each row of a batch.

    Args:
        router: None where a layer below decides.
        index: of the layer.
        own: experts of other architecture, by number.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        router: nn.Module | None,
        *,
        index: int,
        own: Mapping[int, "Surroundings"],
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = router
        self._index = index
        self._own = _Unseen(own)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):  # hooks and such are no expert's
                raise
            # What a model asks of its layers: its kind of attention, say.
            experts: Any = super().__getattr__("experts")
            return getattr(experts[0], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the stock layer takes and returns."""
        routing = _ROUTING.get()
        if routing is None:
            raise RuntimeError("a mixed layer was called outside of its model's forward pass")
        choice = self._choice(routing, hidden_states)
        kept = self._kept(routing, choice)

        def run(expert: int, rows: Tensor | None) -> Any:
            # Families pass a layer's arguments by name or by position.
            given: Any = (args, kwargs)
            states = hidden_states
            if expert in self._own.value:
                own = self._own.value[expert]
                given = own.arguments(routing, expert, hidden_states)[self._index]
            if rows is not None:
                states = hidden_states[rows.to(hidden_states.device)]
                given = _rows(given, rows, len(hidden_states))
            placed, named = given
            if kept is not None:
                # An attention module asks for its own number, and finds its part there.
                part = Cache(layers=[kept.parts[expert]] * (self._index + 1))
                placed = [part if isinstance(v, Cache) else v for v in placed]
                named = {key: part if isinstance(v, Cache) else v for key, v in named.items()}
            return self.experts[expert](states, *placed, **named)

        groups = [(expert, rows) for expert, rows, _ in choice.groups]
        if len(groups) == 1:
            out = run(*groups[0])
        elif routing.whole:
            raise ValueError(
                "rows of this batch take different routes, and have no common hidden states or "
                "attentions to give; ask for them row by row"
            )
        else:
            parts = [(rows, run(expert, rows)) for expert, rows in groups]
            out = _joined(parts, len(hidden_states), hidden_states.device)
        return _let_through(out, hidden_states, choice.weights)

    def _choice(self, routing: Routing, states: Tensor) -> Choice:
        if self.router is not None:
            routing.chosen = routing.frozen(self._index) or routing.decide(
                self.router, routing.pooled(states), 1
            )
        assert routing.chosen is not None
        return routing.chosen

    def _kept(self, routing: Routing, choice: Choice) -> RoutedCacheLayer | None:
        """The keys and values of each expert's rows."""
        slot = routing.slot(self._index)
        if slot is None:
            return None
        if isinstance(slot, RoutedCacheLayer):
            if slot.choice is not None:
                return slot
            slot = slot.empty  # after `reset`
        if slot.get_seq_length() > 0:
            raise ValueError(_FILLED)
        if self._own.value and isinstance(slot, StaticLayer):
            raise ValueError(
                "a static cache is laid out for the dense model, and experts of other architecture "
                "would see what is not theirs; leave cache_implementation out"
            )
        parts = {}
        for expert, *_ in choice.groups:
            own = self._own.value.get(expert)
            parts[expert] = own.cache_layer(self._index, slot) if own else copy.deepcopy(slot)
        kept = RoutedCacheLayer(choice.kept(), parts, empty=slot)
        routing.cache.layers[self._index] = kept
        return kept


class _Unseen:
    """Holds modules that are no submodules."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _let_through(out: Any, states: Tensor, weights: Tensor | None) -> Any:
    """Give the router the gradient along what its choice adds; the value stays the same.

    The state that a layer passes on unchanged is no merit of the expert's.
    """
    if weights is None or not weights.requires_grad:
        return out
    if isinstance(out, tuple):
        return (_let_through(out[0], states, weights), *out[1:])
    nudge = (weights - 1)[:, :, None].to(out.device)
    return out + nudge.to(out.dtype) * (out - states.to(out.device)).detach()


def _rows(value: Any, rows: Tensor, count: int) -> Any:
    """The rows of whatever has one a row of the batch."""
    if isinstance(value, Tensor):
        has = value.dim() > 1 and len(value) == count
        return value[rows.to(value.device)] if has else value
    if isinstance(value, tuple | list):
        return type(value)(_rows(one, rows, count) for one in value)
    if type(value) is dict:
        return {key: _rows(one, rows, count) for key, one in value.items()}
    return value


def _joined(parts: Sequence[tuple[Any, Any]], count: int, device: torch.device) -> Any:
    """What the experts made of their rows, put together again."""
    first = parts[0][1]
    if isinstance(first, tuple):
        columns = zip(*(out for _, out in parts), strict=True)
        places = [rows for rows, _ in parts]
        return tuple(
            _joined(list(zip(places, column, strict=True)), count, device) for column in columns
        )
    if not isinstance(first, Tensor):
        return first
    joined = torch.empty((count, *first.shape[1:]), dtype=first.dtype, device=device)
    for rows, out in parts:
        joined = joined.index_copy(0, rows.to(device), out.to(device))
    return joined


class MixedLast(nn.Module):
    """Experts in the place of the final norm, or of the head; the route is the layers'."""

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def forward(self, states: Tensor) -> Any:
        """[rows, columns, width] → what the expert of each row makes of it."""
        routing = _ROUTING.get()
        assert routing is not None
        assert routing.chosen is not None
        groups = [(expert, rows) for expert, rows, _ in routing.chosen.groups]
        if len(groups) == 1:
            return self.experts[groups[0][0]](states)
        parts = [
            (rows, self.experts[expert](states[rows.to(states.device)]))
            for expert, rows in groups
            if rows is not None
        ]
        return _joined(parts, len(states), states.device)


class Surroundings(nn.Module):
    """What an expert of another architecture needs around its layers: masks, rotary tables, caches.

    It is the expert's own base model without its weights; its layers note what they are given.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        count = base.config.num_hidden_layers
        _, layers = find_layers(base, count)
        holder, name = holder_of(base, layers), layers.rpartition(".")[2]
        setattr(holder, name, nn.ModuleList(_Notes() for _ in range(count)))
        _emptied(base, holder, base.get_input_embeddings())
        self.base = base

    def arguments(self, routing: Routing, expert: int, states: Tensor) -> list[_Arguments]:
        """What each layer would be called with, once for each forward pass."""
        if expert not in routing.contexts:
            noted: list[_Arguments] = []
            token = _NOTED.set(noted)
            try:
                cache = self._like(routing)
                self.base(
                    inputs_embeds=states,
                    past_key_values=cache,
                    use_cache=cache is not None,
                    **routing.inputs,
                )
            finally:
                _NOTED.reset(token)
            routing.contexts[expert] = noted
        return routing.contexts[expert]

    def cache_layer(self, index: int, like: Any) -> Any:
        """An empty cache layer for this architecture; like the given one if that is special."""
        if type(like) in (DynamicLayer, DynamicSlidingWindowLayer):
            return DynamicCache(config=self.base.config).layers[index]
        return copy.deepcopy(like)

    def _like(self, routing: Routing) -> Any:
        """A cache that has read as many columns: masks are made by their number."""
        if routing.cache is None:
            return None
        routed = next(one for one in routing.cache.layers if isinstance(one, RoutedCacheLayer))
        count = self.base.config.num_hidden_layers
        layers = [self.cache_layer(index, routed.empty) for index in range(count)]
        if routing.past:
            nothing = torch.zeros(1, 1, routing.past, 1)
            for layer in layers:
                layer.update(nothing, nothing)
        return Cache(layers=layers)


def _emptied(module: nn.Module, holder: nn.Module, tokens: nn.Module) -> None:
    """Take out what has weights: around its layers a model computes without."""
    for name, child in list(module.named_children()):
        if any(part is holder for part in child.modules()):
            _emptied(child, holder, tokens)
        elif isinstance(child, nn.Embedding) and child is not tokens:
            raise ValueError(
                f"{type(module).__name__} embeds more than tokens (positions, say), which states "
                "of another architecture do not hold"
            )
        elif any(True for _ in child.parameters()):
            setattr(module, name, nn.Identity())


_NOTED: ContextVar[list[_Arguments] | None] = ContextVar("modelglue_noted", default=None)


class _Notes(nn.Module):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        noted = _NOTED.get()
        if noted is not None:
            noted.append((args, kwargs))
        return hidden_states


def find_layers(base: nn.Module, count: int) -> tuple[nn.ModuleList, str]:
    """The decoder layers of a base model, and the path of the list that holds them.

    Some families keep them a level deeper (OPT's are its decoder's); the outermost list counts.
    """
    found = [
        (path, module)
        for path, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise ValueError(f"{type(base).__name__}: its {count} decoder layers can't be found")
    path, layers = min(found, key=lambda one: one[0].count("."))
    return layers, path


def holder_of(base: nn.Module, path: str) -> nn.Module:
    """The module that has the one at `path` as its child."""
    return base.get_submodule(path.rpartition(".")[0])


def feed_forward_names(layer: nn.Module) -> list[str]:
    """The children of a layer that are called as feed-forward modules are; it should be one.

    Where there is none the layer holds its matrices itself (OPT's does).
    """
    return [name for name in _FEED_FORWARD if isinstance(getattr(layer, name, None), nn.Module)]


def find_child(module: nn.Module, names: Sequence[str]) -> str | None:
    """The first of these names that a module has a child of."""
    return next(
        (name for name in names if isinstance(getattr(module, name, None), nn.Module)), None
    )


class ModelglueMixtureForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A stock causal language model with experts in it.

    Beside what the stock model takes, `forward` takes `routing_mask` [rows, columns]: which tokens
    a sample's route is decided on (by default all that are no padding), and
    `output_router_logits`.
    """

    config_class = ModelglueMixtureConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ("MixedLayer",)  # its rows are parted and joined on one device
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ("router",)

    def __init__(self, config: ModelglueMixtureConfig) -> None:
        super().__init__(config)
        asked = config.text_config._attn_implementation
        self.dense = AutoModelForCausalLM.from_config(config.text_config)
        self.surroundings = nn.ModuleDict(mix_experts(self.dense, config, attention=asked))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        routing_mask: Tensor | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See the stock model; `routing_mask` and `output_router_logits` are told above."""
        text = self.config.text_config
        if use_cache is None:
            use_cache = bool(getattr(text, "use_cache", True)) and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=text)
        given: Any = inputs_embeds if input_ids is None else input_ids
        columns = given.shape[1]
        is_flat = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
        real = attention_mask[:, -columns:] if is_flat else None
        wants = [kwargs.get(key) or getattr(text, key, False) for key in _WHOLE]
        routing = Routing(
            counted=real if routing_mask is None else routing_mask,
            real=real,
            cache=past_key_values,
            past=0 if past_key_values is None else int(past_key_values.get_seq_length()),
            whole=any(wants),
            inputs={"attention_mask": attention_mask, "position_ids": position_ids},
        )
        token = _ROUTING.set(routing)
        try:
            outputs = self.dense(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                past_key_values=past_key_values,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **routing.inputs,
                **kwargs,
            )
        finally:
            _ROUTING.reset(token)
        if output_router_logits is None:
            output_router_logits = bool(getattr(self.config, "output_router_logits", False))
        told = self._told(outputs, routing, output_router_logits)
        return told.to_tuple() if return_dict is False else told

    def _told(self, outputs: Any, routing: Routing, wants_logits: bool) -> MixtureOutput:
        loss, aux_loss = outputs.loss, None
        if routing.decided and (self.training or wants_logits):
            top_k = self.config.num_experts_per_tok
            losses = [load_balance(logits, top_k, real) for logits, real in routing.decided]
            aux_loss = torch.stack([one.to(losses[0].device) for one in losses]).mean()
            if self.training and loss is not None and self.config.router_aux_loss_coef:
                loss = loss + self.config.router_aux_loss_coef * aux_loss.to(loss.device)
        logits = tuple(logits for logits, _ in routing.decided) if wants_logits else None
        return MixtureOutput(
            loss=loss,
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            aux_loss=aux_loss,
            router_logits=logits,
        )

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As every model does; what is given now is the prompt, on which samples are routed."""
        settings = args[0] if args else kwargs.get("generation_config")
        settings = settings or self.generation_config
        chunk = kwargs.get("prefill_chunk_size", getattr(settings, "prefill_chunk_size", None))
        if chunk and self.config.routes_samples:
            raise ValueError(
                "prefill_chunk_size: a route is decided on the whole prompt, read at once"
            )
        given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((one for one in given if one is not None), None)
        if prompt is not None:
            kwargs.setdefault("prompt_length", prompt.shape[1])
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *args: Any,
        attention_mask: Any = None,
        inputs_embeds: Tensor | None = None,
        prompt_length: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The stock model's inputs; where the prompt is read (again), which columns it is."""
        inputs: dict[str, Any] = self.dense.prepare_inputs_for_generation(
            input_ids,
            *args,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        past = inputs.get("past_key_values")
        if prompt_length is None or (past is not None and past.get_seq_length() > 0):
            return inputs
        embeds = inputs.get("inputs_embeds")
        read = inputs["input_ids"] if embeds is None else embeds
        mask = torch.ones(read.shape[:2], dtype=torch.long, device=read.device)
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            mask = mask * attention_mask[:, -mask.shape[1] :].to(mask.device)
        mask[:, prompt_length:] = 0
        return {**inputs, "routing_mask": mask}

    def get_input_embeddings(self) -> nn.Module:
        """The dense model's."""
        embeddings: nn.Module = self.dense.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the dense model's."""
        self.dense.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The dense model's; None where each expert has its own."""
        head = self.dense.get_output_embeddings()
        return None if isinstance(head, MixedLast) else head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the dense model's."""
        self.dense.set_output_embeddings(new_embeddings)


_WHOLE = ("output_hidden_states", "output_attentions")


def load_balance(logits: Tensor, top_k: int, real: Tensor | None) -> Tensor:
    """e · Σₑ fₑ·Pₑ: e experts, the share f of choices that fall on each, its mean probability P.

    Args:
        logits: [n, experts].
        real: [n], 0 for padding.
    """
    if real is not None:
        logits = logits[real.to(logits.device) != 0]
    probabilities = logits.softmax(dim=-1)
    chosen = torch.zeros_like(probabilities).scatter(1, logits.topk(top_k, dim=-1).indices, 1.0)
    return logits.shape[1] * (chosen.mean(dim=0) / top_k * probabilities.mean(dim=0)).sum()


def mix_experts(
    dense: PreTrainedModel, config: ModelglueMixtureConfig, *, attention: str | None = None
) -> dict[str, Surroundings]:
    """Put experts, copies of the dense model's own parts, and routers into it.

    Args:
        attention: the implementation that was asked for; sdpa is no more than a default, which not
            all architectures have.

    Returns:
        What experts of other architecture need, by their number.
    """
    kind, count, text = config.kind, config.num_local_experts, config.text_config
    base = dense.base_model
    layers, path = find_layers(base, text.num_hidden_layers)
    others = {}
    for expert, other in enumerate(config.expert_configs):
        if other is not None:
            others[expert] = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**other),
                dtype=dense.dtype,
                **({} if attention in (None, "sdpa") else {"attn_implementation": attention}),
            ).base_model
    theirs = {
        expert: find_layers(other, text.num_hidden_layers)[0] for expert, other in others.items()
    }
    surroundings = {expert: Surroundings(other) for expert, other in others.items()}
    for index in range(kind["shared_layers"], len(layers)):
        router = None
        if kind["level"] != "model" or index == kind["shared_layers"]:
            router = make_router(text.hidden_size, count, config.modelglue.get("router_size"))
        if kind["level"] == "ffn":
            _mix_feed_forward(layers[index], router, index, count, kind)
        else:
            experts = [theirs.get(expert, layers)[index] for expert in range(count)]
            experts = [_copied(expert) for expert in experts]
            layers[index] = MixedLayer(experts, router, index=index, own=surroundings)
    if kind["level"] == "model":
        holder = holder_of(base, path)
        _mix_last(holder, find_child(holder, _FINAL_NORM), count)
        if find_child(holder, _AFTER_NORM):
            _mix_last(holder, _AFTER_NORM[0], count)
        if config.modelglue.get("own_head"):
            head = dense.get_output_embeddings()
            name = next((name for name, child in dense.named_children() if child is head), None)
            _mix_last(dense, name, count)
    return {str(expert): one for expert, one in surroundings.items()}


def _mix_feed_forward(
    layer: nn.Module, router: nn.Module | None, index: int, count: int, kind: Mapping[str, Any]
) -> None:
    names, norm = feed_forward_names(layer), find_child(layer, _NORM_AFTER)
    if len(names) != 1 or router is None:
        raise ValueError(
            f"{len(names)} modules of {type(layer).__name__} look like its feed-forward part, "
            "where one is needed"
        )
    (name,) = names
    mixed = MixedFeedForward(
        [_copied(getattr(layer, name)) for _ in range(count)],
        router,
        index=index,
        top_k=kind["top_k"],
        by_token=kind["input"] == "token",
        norm=None if norm is None else getattr(layer, norm),
    )
    setattr(layer, name, mixed)


def _mix_last(module: nn.Module, name: str | None, count: int) -> None:
    if name is None:
        raise ValueError(f"{type(module).__name__}: its final norm or its head can't be found")
    own = getattr(module, name)
    setattr(module, name, MixedLast([_copied(own) for _ in range(count)]))


def _copied(module: nn.Module) -> nn.Module:
    """A copy under the same configuration: what is set there later is to reach all copies."""
    found = (getattr(part, "config", None) for part in module.modules())
    return copy.deepcopy(module, {id(config): config for config in found if config is not None})


AutoConfig.register(ModelglueMixtureConfig.model_type, ModelglueMixtureConfig, exist_ok=True)
AutoModelForCausalLM.register(ModelglueMixtureConfig, ModelglueMixtureForCausalLM, exist_ok=True)
# What is saved again takes this file along.
ModelglueMixtureConfig.register_for_auto_class()
ModelglueMixtureForCausalLM.register_for_auto_class("AutoModelForCausalLM")
