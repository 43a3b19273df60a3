"""How a recipe merges: any method, its parameters, and what a search's coefficients mean to it.

The search chooses models and coefficients, and what these are depends on the method: its weights,
where it has any; `t`, for slerp; for a method that puts one model into another, the heavier of two
is the one that takes the other in. A method that takes no weights merges the chosen ones. Weights
and `t` may differ from group to group of tensors (see `groups`), and other parameters may be
searched with them (see `dials`). Layers in a new order are another sort of candidate, whatever the
method is (see `dataflow`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelglue.checkpoint.reader import Checkpoint
from modelglue.merge.config.schema import MergeConfig, ModelEntry
from modelglue.merge.config.values import Settings, read_setting
from modelglue.merge.method import METHODS, Method
from modelglue.recipe import dataflow
from modelglue.recipe.dials import dials
from modelglue.recipe.groups import setting
from modelglue.recipe.numbers import Spelling, by_parameter, mean_weights, shares, spread, to_sum_1
from modelglue.registry import nearest
from modelglue.search.knobs import EVERY_MODEL, WEIGHT, Knob, is_plain
from modelglue.search.problem import Coefficients, Dials, canonical

CHOSEN = ("weight", "t")
"""Parameters that the search sets."""


@dataclass(frozen=True)
class Formula:
    """A merge method with its parameters.

    Attributes:
        method: its name.
        parameters: value by name; a per-model one may be a mapping from a model's name to its own.
    """

    method: str = "linear"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def definition(self) -> Method:
        """The registered method."""
        return METHODS[self.method]

    @property
    def absorbs(self) -> bool:
        """Whether it puts one model into another, which is its base."""
        return self.definition.base == "required" and self.definition.models[1] == 1

    @property
    def most(self) -> int | None:
        """How many models a merge takes at most; None where it takes any number."""
        return 2 if self.absorbs else self.definition.models[1]

    @property
    def weighted(self) -> bool:
        """Whether coefficients are weights of the method."""
        return self.definition.parameter(WEIGHT) is not None

    @property
    def between(self) -> bool:
        """Whether they say how far the merge is from one model to another."""
        return self.definition.parameter("t") is not None

    @property
    def normalised(self) -> bool:
        """Whether only the ratios of the coefficients matter."""
        for name in ("normalize", "normalize_weights"):
            parameter = self.definition.parameter(name)
            if parameter is not None:
                set_to = self._settings(self.parameters).get(name, parameter.default)
                return set_to is True
        return True

    def canonical(self, coefficients: Coefficients) -> dict[str, float]:
        """One spelling for all coefficients that give the same merge.

        A single model with nothing else said is that model, with the coefficient 1.
        """
        spelled = canonical(coefficients)
        if dataflow.reorders(spelled):
            return spelled
        knobs = {Knob.parse(name): number for name, number in spelled.items()}
        weights = {knob: number for knob, number in knobs.items() if knob.parameter == WEIGHT}
        names = sorted({knob.model for knob, number in weights.items() if number})
        kept = {k: n for k, n in weights.items() if k.model in names}
        others = {
            knob: number
            for knob, number in knobs.items()
            if knob.parameter != WEIGHT and knob.model in (EVERY_MODEL, *names)
        }
        if len(names) == 1 and (self.between or not self.weighted):
            return canonical({names[0]: 1.0})
        if self.absorbs:
            base = self.base(coefficients)
            kept = {Knob(name): 0.75 if name == base else 0.25 for name in names}
        elif any(knob.parameter == "t" for knob in others) or not (self.weighted or self.between):
            kept = {Knob(name): 1 / len(names) for name in names}
        elif self.normalised:
            kept = to_sum_1(kept)
        return canonical({str(knob): number for knob, number in (kept | others).items()})

    @staticmethod
    def reorders(coefficients: Coefficients) -> bool:
        """Whether a candidate says which layers follow one another, in place of what to merge."""
        return dataflow.reorders(coefficients)

    def single(self, coefficients: Coefficients) -> str | None:
        """The model that a candidate is, where it is no merge; None where it is one."""
        spelled = self.canonical(coefficients)
        (name, number), *others = *spelled.items(), ("", 0.0)
        return name if len(others) == 1 and number == 1 and is_plain(name) else None

    def base(self, coefficients: Coefficients) -> str | None:
        """Which of the models takes the other in, for a method that does so."""
        weights = mean_weights(coefficients)
        if not self.absorbs or len(weights) < 2:
            return None
        return max(sorted(weights), key=lambda name: weights[name])

    def config(
        self,
        coefficients: Coefficients,
        references: Mapping[str, str],
        *,
        template: str,
        root: Path = Path(),
        tensors: Collection[str] = (),
    ) -> MergeConfig:
        """The merge with these coefficients.

        Args:
            coefficients: a candidate.
            references: what the user wrote for each model, in the order in which they are merged.
            template: the same for the model that gives the configuration, and is the base of a
                method that needs one.
            root: what paths in the parameters are relative to.
            tensors: the names of the template's tensors, which tell what a group is.

        Raises:
            ValueError: the candidate has a number that the method knows nothing of.
        """
        if dataflow.reorders(coefficients):
            return dataflow.config(
                coefficients, references, template=template, root=root, tensors=tensors
            )
        numbers = by_parameter(coefficients)
        absorbing = self.base(coefficients)
        names = [n for n in references if (n, WEIGHT) in numbers and n != absorbing]
        base = template if absorbing is None else references[absorbing]
        groups = {g for own in numbers.values() for g in own} - {""}
        spell = Spelling(self.definition, groups, tensors)
        shared = {name: v for name, v in self.parameters.items() if not _by_model(v)}
        settings = {**self._settings(shared), **spell(numbers, EVERY_MODEL)}
        if self.between and len(names) == 2 and "t" not in settings:
            settings["t"] = setting(
                shares(*(numbers[name, WEIGHT] for name in names)), tensors, default=0.5
            )
        entries = []
        for name in names:
            fixed = {p: v[name] for p, v in self.parameters.items() if _by_model(v)}
            own = {**self._settings(fixed), **spell(numbers, name)}
            entries.append(ModelEntry(references[name], own))
        return MergeConfig(
            self.method,
            tuple(entries),
            None if self.definition.base in ("first", "optional") else base,
            settings,
            root=root,
        )

    def _settings(self, values: Mapping[str, Any]) -> Settings:
        return {
            parameter.name: read_setting(values[parameter.name], parameter, "", [])
            for parameter in self.definition.parameters
            if parameter.name in values and not _by_model(values[parameter.name])
        }

    def dials(
        self, template: Checkpoint, *, group_size: int | None = None, roles: bool = False
    ) -> Dials:
        """What a search may turn; see `dials.dials`."""
        return dials(self, template, group_size=group_size, roles=roles)

    def words(self) -> str:
        """The method and what was set: "ties with density 0.5"."""
        said = ", ".join(
            f"{name} a model" if _by_model(value) else f"{name} {value}"
            for name, value in self.parameters.items()
        )
        return self.method + (f" with {said}" if said else "")

    def share(self, coefficients: Coefficients, name: str, names: Sequence[str]) -> str:
        """What a candidate says of one of its models.

        Args:
            coefficients: the candidate.
            name: of the model.
            names: of all models that could be merged, in their order.
        """
        if dataflow.reorders(coefficients):
            return dataflow.words(coefficients, name)
        numbers = by_parameter(coefficients)
        if self.absorbs:
            return "takes the other in" if name == self.base(coefficients) else "taken in"
        own, what = numbers[name, WEIGHT], "weight" if self.weighted else "share"
        t = numbers.get((EVERY_MODEL, "t"))
        if t is not None:
            first = next(n for n in names if (n, WEIGHT) in numbers)
            own = {group: 1 - n for group, n in t.items()} if name == first else t
        parts = [f"{what} {spread(own)}"]
        parts += [
            f"{parameter} {spread(values)}"
            for (model, parameter), values in numbers.items()
            if model == name and parameter != WEIGHT
        ]
        return ", ".join(parts)

    def to_mapping(self) -> dict[str, Any]:
        """The same as a YAML mapping."""
        return {"method": self.method, "parameters": dict(self.parameters)}


def _by_model(value: Any) -> bool:
    # A mapping with `value` is mergekit's way to say for which tensors.
    return isinstance(value, Mapping) and "value" not in value


def parse_formula(value: object, names: Sequence[str], problems: list[str]) -> Formula:
    """The `merge` section of a recipe.

    Args:
        value: as YAML gives it; None for the default, linear.
        names: of the recipe's models.
        problems: what is wrong is added here.
    """
    if value is None:
        return Formula()
    if not isinstance(value, Mapping):
        problems.append("merge: must be a mapping with method and parameters")
        return Formula()
    known = ("method", "parameters")
    problems += [
        f"merge.{key}: unknown key{nearest(str(key), known)}" for key in value if key not in known
    ]
    method, parameters = value.get("method", "linear"), value.get("parameters") or {}
    if not isinstance(method, str) or method not in METHODS:
        close = nearest(str(method), METHODS)
        problems.append(f"merge.method: {method!r} is none of {', '.join(METHODS)}{close}")
        return Formula()
    if not isinstance(parameters, Mapping):
        problems.append("merge.parameters: is no mapping")
        return Formula(method)
    for name, given in parameters.items():
        problems += _parameter_problems(METHODS[method], str(name), given, names)
    for parameter in METHODS[method].parameters:
        absent = parameter.name not in parameters and parameter.name not in CHOSEN
        if parameter.kind == "checkpoint" and absent:
            problems.append(
                f"merge.parameters.{parameter.name}: needed for every model: {parameter.help}"
            )
    return Formula(method, dict(parameters))


def _parameter_problems(
    method: Method, name: str, given: object, names: Sequence[str]
) -> list[str]:
    where = f"merge.parameters.{name}"
    parameter = method.parameter(name)
    if name in CHOSEN and parameter is not None:
        return [f"{where}: the search chooses it"]
    if parameter is None:
        close = nearest(name, [p.name for p in method.parameters])
        return [f"{where}: {method.name} has no such parameter{close}"]
    problems: list[str] = []
    if not isinstance(given, Mapping) or "value" in given:
        read_setting(given, parameter, where, problems)
        return problems
    if parameter.per == "merge":
        return [f"{where}: holds for the whole merge, so it is one value"]
    problems += [
        f"{where}.{model}: no such model{nearest(str(model), names)}"
        for model in given
        if model not in names
    ]
    problems += [f"{where}: {model} lacks its own" for model in names if model not in given]
    for model, own in given.items():
        read_setting(own, parameter, f"{where}.{model}", problems)
    return problems
