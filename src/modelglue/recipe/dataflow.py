"""Layers of several models, one after the other: the data-flow space of Akiba et al. (2403.13187).

A candidate says which layer of which model is the n-th of the new model, and by how much what
enters it is scaled. That becomes mergekit's `slices`, so a stock checkpoint holds the result: the
embedding is of the model that the first layer is from, final norm and head of the last's, as there.

A stock layer has no place for the scale s of its input, but the layers of most models normalise
what they read and add what they find to it. For those, scaling the input of layer k by sₖ is the
same as dividing what it and all later layers add by sₖ, up to the ε of the norms: the final norm
takes the common factor out. So the projections that write into the residual stream are divided by
s₀·…·sₖ. Where other norms stand behind these projections nothing can be scaled in this way.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelglue.checkpoint.naming import place, split_layer
from modelglue.errors import NotMergeable
from modelglue.merge.config.schema import MergeConfig, ModelEntry, SliceEntry
from modelglue.merge.config.values import Conditional, Settings
from modelglue.search.knobs import Knob
from modelglue.search.problem import Coefficients

_PLACE = re.compile(r"place (\d+)")
_LAYER = re.compile(r"layer (\d+)")
# The projections that write into the residual stream, by role.
_WRITES = {
    "attention": re.compile(r"\.(o_proj|out_proj|c_proj|dense|wo)\.(weight|bias)$"),
    "mlp": re.compile(r"\.(down_proj|c_proj|dense_4h_to_h|fc_out|fc2|w2)\.(weight|bias)$"),
}
# Norms behind them undo a scale. (`post_attention_layernorm` stands before the MLP in most.)
_BEHIND = re.compile(r"\.(post_(feedforward|mlp|ffn|self_attn)_(layer)?norm|norm2_post)\.")


@dataclass(frozen=True)
class Placed:
    """A layer in its new place.

    Attributes:
        layer: its number in its model.
        scale: of what enters it.
    """

    model: str
    layer: int
    scale: float


def reorders(coefficients: Coefficients) -> bool:
    """Whether a candidate says which layers follow one another."""
    return any(_PLACE.fullmatch(Knob.parse(name).parameter) for name in coefficients)


def layers(coefficients: Coefficients) -> tuple[Placed, ...]:
    """The layers of a candidate in their order; places that nobody takes are left out.

    >>> layers({"place 2 of a [layer 0]": 1.0, "place 0 of b [layer 1]": 0.9})
    (Placed(model='b', layer=1, scale=0.9), Placed(model='a', layer=0, scale=1.0))

    Raises:
        ValueError: two layers in one place, a scale that is not above 0, or another number.
    """
    found: dict[int, Placed] = {}
    for name, scale in coefficients.items():
        knob = Knob.parse(name)
        at, layer = _PLACE.fullmatch(knob.parameter), _LAYER.fullmatch(knob.group)
        if at is None or layer is None:
            raise ValueError(f"{name!r} is no layer in its place")
        if int(at[1]) in found:
            raise ValueError(f"two layers are in place {at[1]}")
        if not scale > 0:
            raise ValueError(f"{name!r}: {scale} scales what enters a layer; it must be above 0")
        found[int(at[1])] = Placed(knob.model, int(layer[1]), scale)
    return tuple(placed for _, placed in sorted(found.items()))


def config(
    coefficients: Coefficients,
    references: Mapping[str, str],
    *,
    template: str,
    root: Path = Path(),
    tensors: Collection[str] = (),
) -> MergeConfig:
    """The merge of such a candidate; for the arguments see `Formula.config`.

    Raises:
        NotMergeable: layers are scaled of which nobody can tell how to.
    """
    slices = []
    for run, factor in _runs(layers(coefficients)):
        first, last = run[0].layer, run[-1].layer + 1
        own: Settings = {} if factor == 1 else {"scale": _scaled(factor, run[0].layer, tensors)}
        slices.append(SliceEntry((ModelEntry(references[run[0].model], own, (first, last)),)))
    return MergeConfig("passthrough", base_model=template, root=root, slices=tuple(slices))


def unscalable(layer: int, tensors: Collection[str]) -> str | None:
    """Why what enters a layer cannot be scaled; None if it can.

    Args:
        layer: its number.
        tensors: names, of the whole model.
    """
    behind = [name for name in tensors if place(name).layer == layer and _BEHIND.search(name)]
    if not behind and all(_writes(layer, tensors).values()):
        return None
    why = f"{behind[0]} normalises them" if behind else "nobody can tell which they are"
    return (
        "the scale of a layer's input is written as one of its output projections, and here " + why
    )


def words(coefficients: Coefficients, model: str) -> str:
    """What a candidate takes of one model: "layers 0, 1 and 5"."""
    taken = [str(placed.layer) for placed in layers(coefficients) if placed.model == model]
    listed = " and ".join([", ".join(taken[:-1]), taken[-1]] if len(taken) > 1 else taken)
    return f"layer{'s' if len(taken) > 1 else ''} {listed}"


def _runs(placed: tuple[Placed, ...]) -> Iterator[tuple[list[Placed], float]]:
    """Adjacent layers of one model, and what all they add is multiplied by."""
    run: list[Placed] = []
    factor = 1.0
    for layer in placed:
        own = factor / layer.scale
        follows = run and (layer.model, layer.layer) == (run[-1].model, run[-1].layer + 1)
        if run and not (follows and own == factor):
            yield run, factor
            run = []
        run.append(layer)
        factor = own
    yield run, factor


def _scaled(factor: float, layer: int, tensors: Collection[str]) -> tuple[Conditional, ...]:
    """The factor for whatever writes into the residual stream."""
    if (why := unscalable(layer, tensors)) is not None:
        raise NotMergeable(f"{why}. Search with scales: off.")
    writes = [name for names in _writes(layer, tensors).values() for name in names]
    endings = [split for name in writes if (split := split_layer(name))]
    texts = dict.fromkeys(after for _, _, after in endings)
    return (*(Conditional(factor, text) for text in texts), Conditional(1.0))


def _writes(layer: int, tensors: Collection[str]) -> dict[str, list[str]]:
    """By role, the tensors of a layer that write into the residual stream."""
    inside = [name for name in tensors if place(name).layer == layer]
    return {
        role: [name for name in inside if place(name).role == role and pattern.search(name)]
        for role, pattern in _WRITES.items()
    }
