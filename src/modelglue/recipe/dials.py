"""What of a merge method a search may turn."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from modelglue.merge.plan.slices import Layers, depth_of
from modelglue.recipe.dataflow import unscalable
from modelglue.recipe.groups import labels
from modelglue.search.problem import Dial, Dials

if TYPE_CHECKING:
    from modelglue.checkpoint.reader import Checkpoint
    from modelglue.recipe.formula import Formula

_IDLE = "accepted, no effect"
"""How the help of a parameter begins that changes nothing."""

_MARGIN = 0.01


def dials(
    formula: "Formula",
    template: "Checkpoint",
    *,
    group_size: int | None = None,
    roles: bool = False,
) -> Dials:
    """The dials of a method; what the recipe sets is none.

    Args:
        formula: the method and what is set.
        template: a model of the family.
        group_size: adjacent layers that share their numbers; None for all.
        roles: whether attention and MLP have numbers of their own.
    """
    names = list(template.tensors)
    layers = depth(names, template.config)
    return Dials(
        weighted=formula.weighted,
        normalised=formula.normalised,
        others=tuple(_others(formula)),
        groups=labels(names, size=group_size, roles=roles),
        layers=layers,
        scales=scaling_problem(names, layers) is None,
    )


def depth(names: Iterable[str], config: Mapping[str, object]) -> int:
    """How many layers a model has that can be put in another order; 0 where that is not clear."""
    found = Layers(names, depth_of(config))
    return 0 if found.main is None else found.depth(found.main)


def scaling_problem(names: Collection[str], layers: int) -> str | None:
    """Why not all of a model's layers can be scaled where they are reordered; None if they can."""
    problems = (unscalable(layer, names) for layer in range(layers))
    return next((problem for problem in problems if problem is not None), None)


def _others(formula: "Formula") -> Iterable[Dial]:
    method, fixed = formula.definition, formula.parameters
    if formula.between:
        yield Dial("t", 0.0, 1.0, 0.5, per_model=False)
    density = method.parameter("density")
    if density is not None and "density" not in fixed and not density.help.startswith(_IDLE):
        low, high = 0.05, 1.0
        epsilon = method.parameter("epsilon")
        if epsilon is not None:  # densities ± ε are probabilities
            set_to = fixed.get("epsilon", epsilon.default)
            around = set_to if isinstance(set_to, int | float) else 0.5 - 2 * _MARGIN
            low, high = max(low, around + _MARGIN), 1 - around - _MARGIN
        if low < high:
            yield Dial("density", low, high, 0.5, per_model=True)
    scale = method.parameter("lambda")
    # Where weights are free, λ would only turn all of them at once.
    if scale is not None and "lambda" not in fixed and formula.normalised:
        yield Dial("lambda", 0.0, 2.0, 1.0, per_model=False)
