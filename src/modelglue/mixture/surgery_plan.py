"""Which bytes of which model make up a checkpoint that carries its own modelling file.

The modelling file itself says what tensors there are: the model is built without memory, and every
name of it is looked up in the model that the part is taken from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelglue.checkpoint.naming import head_and_embedding, is_buffer, split_layer
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.settings import language_config
from modelglue.checkpoint.spec import torch_dtype
from modelglue.errors import MixtureError
from modelglue.mixture.modeling_modelglue import (
    MixedFeedForward,
    MixedLast,
    MixedLayer,
    ModelglueMixtureConfig,
    ModelglueMixtureForCausalLM,
    find_layers,
)
from modelglue.mixture.notation import MixtureKind
from modelglue.mixture.router import LinearRouter, MLPRouter, Router
from modelglue.mixture.stock_plan import Output, Part
from modelglue.mixture.surgery_checks import computes_alike, mixing_problems, settings

MODULE = "modeling_modelglue"
"""The modelling file's name, in the checkpoint as here."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_MOST_NAMED = 3


@dataclass(frozen=True)
class LayersPlan:
    """A mixture in one checkpoint, complete but for its bytes.

    Attributes:
        outputs: its tensors, in the order to be stored.
        config: its `config.json`.
    """

    outputs: tuple[Output, ...]
    config: Mapping[str, Any]

    @property
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype and shape."""
        return {output.name: (output.dtype, output.shape) for output in self.outputs}


def make_layers_plan(
    dense: Checkpoint,
    experts: Mapping[str, Checkpoint],
    routers: Sequence[Router] | None,
    kind: MixtureKind,
) -> LayersPlan:
    """Say where every byte of the mixture comes from.

    Args:
        dense: gives everything that no expert has.
        experts: name → whose layers, or feed-forward parts, it has.
        routers: one a mixed layer, at model level one in all; None for zeros.

    Raises:
        MixtureError: these make no such mixture; all that is wrong.
    """
    problems = mixing_problems(dense, experts, kind)
    if routers is not None:
        problems += _router_problems(dense, routers, len(experts), kind)
    _refuse(problems)
    config = _config(dense, experts, routers, kind)
    try:
        with torch.device("meta"):
            model = ModelglueMixtureForCausalLM(ModelglueMixtureConfig(**config))
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        near = "level: block" if kind.level == "ffn" else "shared_layers: 0, a bundle"
        raise MixtureError(f"{dense.name} can't be mixed: {error}; use {near}") from error
    planner = _Planner(dense, tuple(experts.values()), tuple(routers or ()), model)
    outputs = tuple(planner.outputs())
    if kind.level != "ffn":
        planner.problems += planner.unplaced(kind.shared_layers)
    _refuse(planner.problems)
    return LayersPlan(outputs, config)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise MixtureError(f"these models make no such mixture:{lines}")


class _Planner:
    def __init__(
        self,
        dense: Checkpoint,
        experts: Sequence[Checkpoint],
        routers: Sequence[Router],
        model: ModelglueMixtureForCausalLM,
    ) -> None:
        self.problems: list[str] = []
        self._dense, self._experts, self._routers = dense, experts, routers
        self._model = model
        self._used: dict[int, set[str]] = {i: set() for i in range(len(experts))}
        self._lacking: dict[str, list[str]] = {}

    def outputs(self) -> Iterator[Output]:
        """Every tensor of the model; what is not found is noted in `problems`."""
        sources, given = self._sources(), self._given()
        tied = self._model.all_tied_weights_keys
        for name, tensor in self._model.state_dict().items():
            shape = tuple(tensor.shape)
            if name in given or (".router." in name and name not in sources):
                values = given.get(name, torch.zeros(shape)).detach().float().cpu()
                yield Output(name, "F32", shape, values=values)
            elif name not in tied:
                expert, stored = sources.get(name, (None, name.removeprefix("dense.")))
                output = self._taken(name, shape, expert, stored)
                if output is not None:
                    yield output
        for label, names in self._lacking.items():
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            self.problems.append(f"{label} lacks {', '.join(names[:_MOST_NAMED])}{more}")

    def unplaced(self, shared: int) -> Iterator[str]:
        """Tensors of experts' layers that the model has no place for."""
        for index, used in self._used.items():
            expert = self._experts[index]
            left = [
                name
                for name in expert.tensors
                if _is_language(expert, name)
                if (found := split_layer(name)) and found[1] >= shared
                if name not in used and not is_buffer(name)
            ]
            if left:
                yield f"expert {expert.name!r}: no place is known for {left[0]}"

    def _sources(self) -> dict[str, tuple[int, str]]:
        """Name in the mixture → the expert that has it, and what it is called there."""
        found = {}
        for path, module in self._model.named_modules():
            if not isinstance(module, MixedLayer | MixedFeedForward | MixedLast):
                continue
            for index, part in enumerate(module.experts):
                inner = self._called(path.removeprefix("dense."), index)
                for name in part.state_dict():
                    found[f"{path}.experts.{index}.{name}"] = (index, f"{inner}.{name}")
        return found

    def _called(self, path: str, expert: int) -> str:
        """A layer's path in an expert of another architecture."""
        if str(expert) not in self._model.surroundings:
            return path
        base: Any = self._model.surroundings[str(expert)].base
        _, layers = find_layers(base, base.config.num_hidden_layers)
        number = path.rpartition(".")[2]
        return f"{base.base_model_prefix}.{layers}.{number}"

    def _given(self) -> dict[str, Tensor]:
        routers = [path for path, _ in self._model.named_modules() if path.endswith(".router")]
        return {
            f"{path}.{name}": tensor
            for path, router in zip(routers, self._routers, strict=False)
            for name, tensor in router.tensors().items()
        }

    def _taken(
        self, name: str, shape: tuple[int, ...], expert: int | None, wanted: str
    ) -> Output | None:
        model = self._dense if expert is None else self._experts[expert]
        label = "the dense model" if expert is None else f"expert {model.name!r}"
        stored = _stored(model, wanted)
        if stored is None:
            self._lacking.setdefault(label, []).append(wanted)
            return None
        if expert is not None:
            self._used[expert].add(stored)
        spec = model.spec(stored)
        if spec.shape != shape:
            self.problems.append(f"{label}: {stored} is {list(spec.shape)}, not {list(shape)}")
            return None
        own = _stored(self._dense, wanted)
        dtype = spec.dtype if own is None else self._dense.spec(own).dtype
        if not {dtype, spec.dtype} <= set(_FLOATS):
            dtype = spec.dtype
        part = Part(model, stored, spec.dtype, 0, shape)
        return Output(name, dtype, shape, (part,), routed=expert is not None)


def _stored(model: Checkpoint, wanted: str) -> str | None:
    """What a model's file calls a tensor: some leave the base model's prefix out.

    Where a language model is one part of several, its names say so.
    """
    bare = wanted.partition(".")[2]
    for name in (wanted, bare, f"language_model.{wanted}", f"model.language_model.{bare}"):
        if name in model.tensors:
            return name
    head, embedding = head_and_embedding(model.tensors)
    is_head = "head" in wanted.split(".")[0] or "embed_out" in wanted
    return embedding if is_head and head is None and model.tied else None


def _is_language(model: Checkpoint, name: str) -> bool:
    """Whether a tensor is the language model's, and not, say, that part's which reads images."""
    return "text_config" not in model.config or "language_model." in name


def _config(
    dense: Checkpoint,
    experts: Mapping[str, Checkpoint],
    routers: Sequence[Router] | None,
    kind: MixtureKind,
) -> dict[str, Any]:
    ours = settings(dense)
    assert not isinstance(ours, str)
    own_head = kind.level == "model" and not all(
        _same_head(dense, expert) for expert in experts.values()
    )
    text = dict(language_config(dense.config))
    # A head that differs from the embedding counts, whatever the dense model's settings say.
    text["tie_word_embeddings"] = dense.tied and not own_head
    place = "feed-forward module" if kind.level == "ffn" else "layer"
    config: dict[str, Any] = {
        "architectures": [ModelglueMixtureForCausalLM.__name__],
        "model_type": ModelglueMixtureConfig.model_type,
        "auto_map": {
            "AutoConfig": f"{MODULE}.{ModelglueMixtureConfig.__name__}",
            "AutoModelForCausalLM": f"{MODULE}.{ModelglueMixtureForCausalLM.__name__}",
        },
        "dtype": ours.get("dtype") or _dtype(dense),
        "router_aux_loss_coef": 0.0,
        "modelglue": {
            "format": 1,
            "kind": kind.to_mapping(),
            "experts": list(experts),
            "feature": {
                "of": f"the state that enters the {place}",
                "pooling": "mean" if kind.input == "sample" else "none",
            },
        },
        "text_config": text,
    }
    if own_head:
        config["modelglue"]["own_head"] = True
    if kind.router == "mlp":
        first = routers[0] if routers else None
        hidden = len(first.weight1) if isinstance(first, MLPRouter) else 2 * len(experts)
        config["modelglue"]["router_size"] = hidden
    others = [_own_settings(ours, expert) for expert in experts.values()]
    if kind.level == "block" and any(others):
        config["expert_configs"] = others
    return config


def _dtype(model: Checkpoint) -> str:
    """That of the largest tensor, as `config.json` calls it; routers are stored in fp32."""
    largest = max(model.tensors.values(), key=lambda spec: spec.numel)
    return str(torch_dtype(largest.dtype)).removeprefix("torch.")


def _own_settings(ours: Mapping[str, Any], expert: Checkpoint) -> dict[str, Any] | None:
    """An expert's settings, if its layers are called in another way than the dense model's."""
    theirs = settings(expert)
    assert not isinstance(theirs, str)
    if computes_alike(ours, theirs):
        return None
    return {key: value for key, value in theirs.items() if key != "_name_or_path"}


def _same_head(one: Checkpoint, other: Checkpoint) -> bool:
    names = []
    for model in (one, other):
        head, embedding = head_and_embedding(model.tensors)
        names.append(embedding if model.tied else head)
    if None in names:
        return False
    first, second = one.spec(str(names[0])), other.spec(str(names[1]))
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    pairs = zip(one.chunks(first.name), other.chunks(second.name), strict=True)
    return all(mine == theirs for mine, theirs in pairs)


def _router_problems(
    dense: Checkpoint, routers: Sequence[Router], experts: int, kind: MixtureKind
) -> Iterator[str]:
    ours = settings(dense)
    if isinstance(ours, str):
        return
    mixed = 1 if kind.level == "model" else ours["num_hidden_layers"] - kind.shared_layers
    if len(routers) != mixed:
        yield f"there are {len(routers)} routers, and {mixed} are needed"
    wanted = MLPRouter if kind.router == "mlp" else LinearRouter
    for index, router in enumerate(routers):
        if not isinstance(router, wanted):
            yield f"router {index} is a {type(router).__name__}, and router: {kind.router} is asked"
        elif (router.experts, router.features) != (experts, ours["hidden_size"]):
            found = f"{router.experts} experts and {router.features} features"
            yield f"router {index} is for {found}, not {experts} and {ours['hidden_size']}"
        elif not all(bool(tensor.isfinite().all()) for tensor in router.tensors().values()):
            yield f"router {index} holds NaN or infinity"
