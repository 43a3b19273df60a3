"""The numbers of a candidate, by model and parameter, and as a configuration has them."""

from collections.abc import Collection, Mapping

from modelglue.merge.config.values import Setting
from modelglue.merge.method import Method
from modelglue.recipe.groups import setting
from modelglue.search.knobs import EVERY_MODEL, WEIGHT, Knob
from modelglue.search.problem import Coefficients

Numbers = dict[str, float]
"""By the label of a group of tensors; "" for all."""

_ROUNDING = 1e-9
"""Weights whose sum is so near to 1 are left as they are; such a sum of others is none."""


def by_parameter(coefficients: Coefficients) -> dict[tuple[str, str], Numbers]:
    """(model, parameter) → its numbers."""
    found: dict[tuple[str, str], Numbers] = {}
    for name, number in coefficients.items():
        knob = Knob.parse(name)
        found.setdefault((knob.model, knob.parameter), {})[knob.group] = number
    return found


def mean_weights(coefficients: Coefficients) -> dict[str, float]:
    """Each model's weight; where groups have weights of their own, the mean over these.

    >>> mean_weights({"a [layers 0-1]": 0.2, "a [rest]": 0.6, "b": 0.5, "density of b": 0.3})
    {'a': 0.4, 'b': 0.5}
    """
    return {
        model: sum(own.values()) / len(own)
        for (model, parameter), own in by_parameter(coefficients).items()
        if parameter == WEIGHT
    }


def to_sum_1(weights: Mapping[Knob, float]) -> dict[Knob, float]:
    """Weights whose ratios matter, group by group; those that nearly cancel as they are."""
    groups = {knob.group for knob in weights}
    if len(groups) > 1 and "" in groups:  # a group's sum has numbers of both in it
        return dict(weights)
    sums = {
        group: sum(number for knob, number in weights.items() if knob.group == group)
        for group in groups
    }
    return {
        knob: number
        if sums[knob.group] < _ROUNDING or abs(sums[knob.group] - 1) < _ROUNDING
        else number / sums[knob.group]
        for knob, number in weights.items()
    }


def shares(first: Numbers, second: Numbers) -> Numbers:
    """What the second has of both, group by group; half where they cancel."""
    shares = {}
    for group in dict.fromkeys((*first, *second)):
        a, b = (own.get(group, own.get("", 0.0)) for own in (first, second))
        shares[group] = b / (a + b) if abs(a + b) > _ROUNDING else 0.5
    return shares


def spread(numbers: Numbers) -> str:
    """A number, or the mean of several and their range."""
    mean = sum(numbers.values()) / len(numbers)
    if len(numbers) == 1:
        return f"{mean:.3f}"
    low, high = min(numbers.values()), max(numbers.values())
    return f"{mean:.3f} ({low:.3f} to {high:.3f} in {len(numbers)} groups)"


class Spelling:
    """Numbers of a candidate as a configuration has them.

    Args:
        method: whose parameters they are.
        groups: the labels of all groups that the candidate tells apart.
        tensors: the names of all tensors.
    """

    def __init__(self, method: Method, groups: Collection[str], tensors: Collection[str]) -> None:
        self._method, self._groups, self._tensors = method, sorted(groups), tensors

    def __call__(
        self, numbers: Mapping[tuple[str, str], Numbers], model: str
    ) -> dict[str, Setting]:
        """The settings of one model, or of the merge.

        Raises:
            ValueError: the method has no such parameter.
        """
        found: dict[str, Setting] = {}
        for (whose, name), own in numbers.items():
            if whose != model:
                continue
            parameter = self._method.parameter(name)
            if parameter is None or (model != EVERY_MODEL and parameter.per == "merge"):
                if name == WEIGHT:  # which models are chosen, of a method without weights
                    continue
                raise ValueError(f"{self._method.name} has no {name} of {model}")
            default = 0.0 if name == WEIGHT else float(parameter.default or 0.0)
            grouped = any(own.keys() - {""})
            groups = self._groups if grouped else []
            values = {group: own.get(group, own.get("", default)) for group in ["", *groups]}
            found[name] = setting(values, self._tensors, default=default)
        return found
