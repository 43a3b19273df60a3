"""How a recipe merges: any method, its parameters, and what a search's coefficients mean to it.

The search chooses models and coefficients, and what these are depends on the method: its weights,
where it has any; `t`, for slerp; for a method that puts one model into another, the heavier of two
is the one that takes the other in. A method that takes no weights merges the chosen ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelglue.merge.config.schema import MergeConfig, ModelEntry
from modelglue.merge.config.values import Settings, read_setting
from modelglue.merge.method import METHODS, Method
from modelglue.registry import nearest
from modelglue.search.problem import Coefficients, canonical

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
        return self.definition.parameter("weight") is not None

    def canonical(self, coefficients: Coefficients) -> dict[str, float]:
        """One spelling for all coefficients that give the same merge."""
        if len(coefficients) == 1 or self.weighted or self.method == "slerp":
            return canonical(coefficients)
        names = sorted(coefficients)
        if self.absorbs:
            base = max(names, key=lambda name: coefficients[name])
            return canonical({name: 0.75 if name == base else 0.25 for name in names})
        return canonical(dict.fromkeys(names, 1 / len(names)))

    def base(self, coefficients: Coefficients) -> str | None:
        """Which of the models takes the other in, for a method that does so."""
        if not self.absorbs or len(coefficients) < 2:
            return None
        return max(sorted(coefficients), key=lambda name: coefficients[name])

    def config(
        self,
        coefficients: Coefficients,
        references: Mapping[str, str],
        *,
        template: str,
        root: Path = Path(),
    ) -> MergeConfig:
        """The merge with these coefficients.

        Args:
            coefficients: of the models to merge, in the order in which they are merged.
            references: what the user wrote for each model.
            template: the same for the model that gives the configuration, and is the base of a
                method that needs one.
            root: what paths in the parameters are relative to.
        """
        absorbing = self.base(coefficients)
        names = [name for name in coefficients if name != absorbing]
        base = template if absorbing is None else references[absorbing]
        shared = {name: v for name, v in self.parameters.items() if not self._by_model(v)}
        if self.definition.parameter("t") is not None and len(names) == 2:
            shared["t"] = coefficients[names[1]]
        entries = [
            ModelEntry(references[name], self._settings(self._own(name, coefficients)))
            for name in names
        ]
        return MergeConfig(
            self.method,
            tuple(entries),
            None if self.definition.base in ("first", "optional") else base,
            self._settings(shared),
            root=root,
        )

    def _own(self, name: str, coefficients: Coefficients) -> dict[str, Any]:
        own = {p: v[name] for p, v in self.parameters.items() if self._by_model(v)}
        return own | ({"weight": coefficients[name]} if self.weighted else {})

    @staticmethod
    def _by_model(value: Any) -> bool:
        # A mapping with `value` is mergekit's way to say for which tensors.
        return isinstance(value, Mapping) and "value" not in value

    def _settings(self, values: Mapping[str, Any]) -> Settings:
        return {
            parameter.name: read_setting(values[parameter.name], parameter, "", [])
            for parameter in self.definition.parameters
            if parameter.name in values
        }

    def words(self) -> str:
        """The method and what was set: "ties with density 0.5"."""
        said = ", ".join(
            f"{name} a model" if self._by_model(value) else f"{name} {value}"
            for name, value in self.parameters.items()
        )
        return self.method + (f" with {said}" if said else "")

    def share(self, coefficient: float) -> str:
        """What a model's coefficient says of it."""
        if self.weighted:
            return f"weight {coefficient:.3f}"
        if self.absorbs:
            return "takes the other in" if coefficient > 0.5 else "taken in"
        return f"share {coefficient:.3f}"

    def to_mapping(self) -> dict[str, Any]:
        """The same as a YAML mapping."""
        return {"method": self.method, "parameters": dict(self.parameters)}


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
