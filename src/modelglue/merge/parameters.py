"""Parameters that several methods share, declared once."""

from collections.abc import Mapping
from typing import Any

from modelglue.merge.kernels.sums import cancel
from modelglue.merge.method import Check, Parameter

WEIGHT = Parameter("weight", "model", "the share of each model", default=1.0)
DENSITY = Parameter(
    "density", "model", "the fraction of each task vector that is kept", default=1.0, low=0, high=1
)
LAMBDA = Parameter("lambda", "merge", "scales the merged task vector", default=1.0)
INT8_MASK = Parameter(
    "int8_mask", "merge", "accepted, no effect: there is no mask to store", False, kind="boolean"
)
GAMMA = Parameter(
    "gamma", "model", "the fraction dropped at the top, of largest magnitude", 0.01, low=0, high=1
)
EPSILON = Parameter(
    "epsilon", "model", "how far the probability of being kept departs from density", 0.15, low=0
)
STATISTICS = Parameter(
    "statistics", "model", "a checkpoint of statistics of the model", kind="checkpoint"
)
SEED = Parameter("seed", "merge", "which random entries are drawn", default=0, kind="integer")

L1_RESCALE = "scale what is kept so that its magnitudes sum to what they summed to before"


def normalize(default: bool) -> Parameter:
    """Whether the sum is divided by that of the weights."""
    text = "divide by the sum of the weights that count"
    return Parameter("normalize", "merge", text, default, kind="boolean")


def rescale(default: bool, how: str) -> Parameter:
    """Whether what is kept makes up for what is dropped."""
    return Parameter("rescale", "merge", how, default, kind="boolean")


def refuse_zero_sum(parameters: Mapping[str, Any], /) -> str | None:
    """Refuse weights that normalising would divide by 0."""
    if parameters["normalize"] and cancel(parameters["weight"]):
        return "the weights sum to 0, and normalize: true divides by their sum"
    return None


def refuse_no_weight(parameters: Mapping[str, Any], /) -> str | None:
    """Refuse weights of a mean that are all 0."""
    return None if any(parameters["weight"]) else "every weight is 0"


def all_of(*checks: Check) -> Check:
    """The first trouble that any check finds."""

    def check(parameters: Mapping[str, Any], /) -> str | None:
        return next((trouble for each in checks if (trouble := each(parameters))), None)

    return check


def refuse_wide_epsilon(parameters: Mapping[str, Any], /) -> str | None:
    """Refuse probabilities that are none."""
    for density, epsilon in zip(parameters["density"], parameters["epsilon"], strict=True):
        if 0 < density < 1 and not epsilon < min(density, 1 - density):
            return f"density ± epsilon must lie between 0 and 1, not {density} ± {epsilon}"
    return None
