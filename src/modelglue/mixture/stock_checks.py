"""What keeps models and routers from making a stock mixture, all of it, before a byte is read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import torch

from modelglue.checkpoint.naming import is_buffer
from modelglue.checkpoint.reader import Checkpoint
from modelglue.checkpoint.settings import language_config
from modelglue.checkpoint.tokenizer import same_vocabulary
from modelglue.errors import MixtureError
from modelglue.mixture.notation import impossible
from modelglue.mixture.router import LinearRouter
from modelglue.mixture.stock_formats import DOWN, EMBEDDING, FFN, HEAD, NORM
from modelglue.mixture.stock_target import StockTarget
from modelglue.mixture.surgery_checks import BUNDLE

_FLOATS = ("F64", "F32", "F16", "BF16")

# Families whose feed-forward parts are one another's: what else they do differently is elsewhere.
_ALIKE = ({"llama", "mistral"},)


def require_fitting(
    dense: Checkpoint,
    experts: Mapping[str, Checkpoint],
    routers: Sequence[LinearRouter] | None,
    target: StockTarget,
) -> None:
    """Raise `MixtureError` with everything that is wrong."""
    problems = list(
        chain(
            _dense_problems(dense, target),
            _count_problems(experts, target),
            _router_problems(routers, len(experts), target),
        )
    )
    if not problems:  # what experts are compared with
        for name, expert in experts.items():
            found = chain(_misfits(expert, target), _foreign_tokens(dense, expert))
            problems += [f"expert {name!r}: {what}" for what in found]
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise MixtureError(f"these models make no {target.model_type} mixture:{lines}")


def _dense_problems(dense: Checkpoint, target: StockTarget) -> Iterator[str]:
    expected = dict.fromkeys([EMBEDDING, *_stored(target, range(target.layers)), NORM])
    if missing := [name for name in expected if name not in dense.tensors]:
        yield f"the dense model lacks {_some(missing)}"
    else:
        yield from _matrix_problems(dense, target, range(target.layers), "the dense model's ")
        odd = [name for name in expected if dense.tensors[name].dtype not in _FLOATS]
        if odd:
            yield f"the dense model's {_some(odd)}: not stored as plain numbers"
    known = {*expected, HEAD}
    if more := [name for name in dense.tensors if name not in known and not is_buffer(name)]:
        family = target.settings["model_type"]
        yield f"the dense model has {_some(more)}, which {family} models have not"
    if HEAD not in dense.tensors and not target.settings["tie_word_embeddings"]:
        yield f"the dense model has no {HEAD}, and its configuration does not tie it"


def _count_problems(experts: Mapping[str, Checkpoint], target: StockTarget) -> Iterator[str]:
    if len(experts) < 2:
        yield f"a mixture needs two experts or more, and there are {len(experts)}"
    elif reason := impossible(target.kind, experts=len(experts)):
        yield reason


def _misfits(expert: Checkpoint, target: StockTarget) -> Iterator[str]:
    """Why an expert's feed-forward parts cannot stand in the dense model."""
    config = language_config(expert.config)
    ours, theirs = str(target.settings["model_type"]), str(config.get("model_type"))
    if ours != theirs and not any({ours, theirs} <= alike for alike in _ALIKE):
        yield f"it is a {theirs} model, and the dense one a {ours} model"
        return
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"):
        mine, other = target.settings[key], config.get(key, target.settings[key])
        if mine != other and {mine, other} != {"silu", "swish"}:
            yield f"{key} is {other}, and the dense model's {mine}"
    if config.get("quantization_config"):
        yield "its weights are quantised; give the model that they were made of"
    if config.get("mlp_bias"):
        yield f"mlp_bias: its feed-forward parts have biases, and {target.model_type}'s have none"
    needed = _stored(target, target.mixed, FFN)
    if missing := [name for name in needed if name not in expert.tensors]:
        yield f"it lacks {_some(missing)}"
        return
    yield from _matrix_problems(expert, target, target.mixed, "")
    if odd := sorted({expert.spec(name).dtype for name in needed} - set(_FLOATS)):
        yield f"its weights are {', '.join(odd)}, which cannot be cast to another dtype"


def _foreign_tokens(dense: Checkpoint, expert: Checkpoint) -> Iterator[str]:
    """What enters an expert is the dense model's reading of the dense model's tokens."""
    if reason := same_vocabulary(dense, expert):
        yield f"its tokens are not the dense model's ({reason}); {BUNDLE}"


def _matrix_problems(
    model: Checkpoint, target: StockTarget, layers: Iterable[int], whose: str
) -> Iterator[str]:
    """The first feed-forward matrix that is not of the shape that the configuration says."""
    hidden, inner = (int(target.settings[key]) for key in ("hidden_size", "intermediate_size"))
    wanted: dict[str, tuple[int, int]] = {}
    for name in FFN:
        stored, rows = target.family.find(name, target.settings)
        shape = (hidden, inner) if name == DOWN else (inner, hidden)
        # Of two that are stored together the later one says where both end.
        wanted[stored] = shape if rows is None else (rows[1], hidden)
    for layer in layers:
        for stored, shape in wanted.items():
            spec = model.spec(f"model.layers.{layer}.{stored}")
            if spec.shape != shape:
                yield f"{whose}{spec.name} is {list(spec.shape)}, and must be {list(shape)}"
                return


def _router_problems(
    routers: Sequence[LinearRouter] | None, experts: int, target: StockTarget
) -> Iterator[str]:
    if routers is None:
        return
    shape = (experts, int(target.settings["hidden_size"]))
    if len(routers) != len(target.mixed):
        yield f"there are {len(routers)} routers for {len(target.mixed)} layers with experts"
    given: Sequence[object] = routers
    for layer, router in enumerate(given, target.kind.shared_layers):
        if not isinstance(router, LinearRouter):
            yield f"the router of layer {layer} is not linear, and those of stock classes are"
        elif tuple(router.weight.shape) != shape:
            found = list(router.weight.shape)
            yield f"the router of layer {layer} is {found}, and must be {list(shape)}"
        elif not bool(torch.isfinite(router.weight).all()):
            yield f"the router of layer {layer} holds NaN or infinity"
        elif _biased(router):
            yield (
                f"the router of layer {layer} has a bias, and those of stock classes have none; "
                "make one without (router.without_bias)"
            )


def _biased(router: LinearRouter) -> bool:
    """Whether the bias says anything: one that is the same for all experts adds nothing."""
    bias = router.bias.detach().double()
    return not bool((bias - bias.mean()).abs().max() <= 1e-6)


def _stored(
    target: StockTarget, layers: Iterable[int], names: tuple[str, ...] | None = None
) -> list[str]:
    """The names under which models of the family store what layers have, each once."""
    wanted = (*target.family.kept, *FFN) if names is None else names
    stored = dict.fromkeys(target.family.find(name, target.settings)[0] for name in wanted)
    return [f"model.layers.{layer}.{name}" for layer in layers for name in stored]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
