"""What a parameter may be set to: a value, a gradient over layers, or values by tensor name.

The forms and what they mean are mergekit's:

- a value: `0.5`. YAML reads `1e-3` as a text; where a number is due it is one.
- a gradient: `[0, 0.5, 1]`, points at even distances from the first layer to the last, between
  which numbers are interpolated linearly; of texts and booleans the point at or before counts.
  Tensors outside of the layers get the first point.
- filters: `[{filter: mlp, value: …}, {value: …}]`, the first whose filter is a part of the
  tensor's name. If none is, the next level of the configuration is asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from modelglue.merge.method import Method, Parameter
from modelglue.registry import nearest

Scalar: TypeAlias = float | int | bool | str | None
Gradient: TypeAlias = tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Conditional:
    """A value for the tensors whose names contain `filter`; for all, if that is None."""

    value: Scalar | Gradient
    filter: str | None = None

    def matches(self, tensor: str) -> bool:
        """Whether the value is for that tensor."""
        return self.filter in (None, "*") or str(self.filter) in tensor


Setting: TypeAlias = Scalar | Gradient | tuple[Conditional, ...]
Settings: TypeAlias = Mapping[str, Setting]

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True}
_BOOLEANS |= {"false": False, "no": False, "off": False, "0": False}


def resolve(setting: Setting, tensor: str, t: float) -> Scalar:
    """The value for one tensor; None where no filter matches.

    Args:
        setting: see above.
        tensor: its name.
        t: how far along the layers it is, from 0 to 1.
    """
    if not isinstance(setting, tuple):
        return setting
    for point in setting:
        if not isinstance(point, Conditional):
            return _along(setting, t)
        if point.matches(tensor):
            return resolve(point.value, tensor, t)
    return None


def _along(points: tuple[Any, ...], t: float) -> Scalar:
    place = t * (len(points) - 1)
    before = int(place)
    if any(isinstance(point, bool | str) for point in points):
        return points[before]  # type: ignore[no-any-return]
    after = min(before + 1, len(points) - 1)
    share = place - before
    return (1 - share) * points[before] + share * points[after]  # type: ignore[no-any-return]


def read_setting(value: object, parameter: Parameter, where: str, problems: list[str]) -> Setting:
    """A setting as YAML gives it, with every text that means a number or a truth made one.

    Args:
        value: of the YAML.
        parameter: which it is for.
        where: the key's path, for messages.
        problems: everything that is wrong is added here.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or parameter.kind == "checkpoint":
        return _scalar(value, parameter, where, problems)
    if not value:
        problems.append(f"{where}: the list is empty")
    if any(isinstance(entry, dict) for entry in value):
        return tuple(
            _conditional(entry, parameter, f"{where}[{i}]", problems)
            for i, entry in enumerate(value)
        )
    return _gradient(value, parameter, where, problems)


def _gradient(
    value: list[object], parameter: Parameter, where: str, problems: list[str]
) -> Gradient:
    return tuple(_scalar(e, parameter, f"{where}[{i}]", problems) for i, e in enumerate(value))


def _conditional(
    entry: object, parameter: Parameter, where: str, problems: list[str]
) -> Conditional:
    if not isinstance(entry, dict):
        problems.append(f"{where}: every entry of the list needs a value, and a filter or none")
        return Conditional(None)
    for key in entry.keys() - {"filter", "value"}:
        problems.append(f"{where}.{key}: unknown key{nearest(str(key), ('filter', 'value'))}")
    name = entry.get("filter")
    if name is not None and not isinstance(name, str):
        problems.append(f"{where}.filter: {name!r} is no part of a tensor's name")
    inner = f"{where}.value"
    if "value" not in entry:
        problems.append(f"{inner}: missing")
        return Conditional(None)
    value = entry["value"]
    if isinstance(value, list):
        if not value:
            problems.append(f"{inner}: the list is empty")
        return Conditional(_gradient(value, parameter, inner, problems), name)
    return Conditional(_scalar(value, parameter, inner, problems), name)


def _scalar(value: Any, parameter: Parameter, where: str, problems: list[str]) -> Scalar:
    match parameter.kind:
        case "boolean" if not isinstance(value, bool) and isinstance(value, str | int | float):
            # Tools that search for parameters write 0.0 and 1.0.
            text = f"{value:g}" if isinstance(value, int | float) else value.lower()
            value = _BOOLEANS.get(text, value)
        case "number" | "integer" if isinstance(value, str):
            value = _number(value)
    trouble = parameter.problem(value)
    if trouble:
        problems.append(f"{where}: {trouble}")
    elif parameter.kind == "integer" and value is not None:
        value = int(value)
    elif parameter.kind == "number" and value is not None:
        value = float(value)
    return value  # type: ignore[no-any-return]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def plain(setting: Setting) -> Any:
    """The setting as YAML would hold it."""
    if not isinstance(setting, tuple):
        return setting
    return [
        {
            **({} if point.filter is None else {"filter": point.filter}),
            "value": plain(point.value),
        }
        if isinstance(point, Conditional)
        else point
        for point in setting
    ]


def filters(settings: Settings) -> Iterator[str]:
    """Every filter in them."""
    for setting in settings.values():
        for point in setting if isinstance(setting, tuple) else ():
            if isinstance(point, Conditional) and point.filter not in (None, "*"):
                yield str(point.filter)


class Resolver:
    """All parameters of a method, for any tensor of models that are merged together.

    Args:
        method: whose parameters.
        levels: the settings that hold for all models, the nearest level first.
        own: of each model, its own settings, which go before all levels.

    Attributes:
        unsaid: (a parameter that is set for some tensors, the model's number) → a tensor that it
            is not set for, which got the default.
    """

    def __init__(self, method: Method, levels: Sequence[Settings], own: Sequence[Settings]) -> None:
        self.unsaid: dict[tuple[str, int], str] = {}
        self._constant: dict[str, Any] = {}
        # Name, and a chain of settings for each model (for a parameter of the merge, just one).
        self._varying: list[tuple[Parameter, list[list[Setting]]]] = []
        self._known: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self._seen: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        wanted = (text for level in (*levels, *own) for text in filters(level))
        self._filters = tuple(dict.fromkeys(wanted))
        for parameter in method.parameters:
            shared = [level[parameter.name] for level in levels if parameter.name in level]
            if parameter.per == "merge":
                chains = [shared]
            else:
                chains = [
                    [settings[parameter.name], *shared] if parameter.name in settings else shared
                    for settings in own
                ]
            if any(chain and isinstance(chain[0], tuple) for chain in chains):
                self._varying.append((parameter, chains))
            else:
                values = tuple(chain[0] if chain else parameter.default for chain in chains)
                self._constant[parameter.name] = _value(parameter, values)

    @property
    def constant(self) -> bool:
        """Whether all tensors get the same."""
        return not self._varying

    def __call__(self, name: str, sources: Sequence[str], t: float) -> Mapping[str, Any]:
        """The parameters of one tensor by name; equal ones are one object.

        Args:
            name: of the output tensor, for parameters of the merge.
            sources: its name in each model, for those of a model.
            t: how far along the layers it is.
        """
        if not self._varying:
            return self._constant
        names = (name,) if all(source == name for source in sources) else (name, *sources)
        # All that a tensor's name decides is which filters it has in it.
        key = (t, *(text in one for one in names for text in self._filters))
        if key not in self._seen:
            self._seen[key] = self._resolved(name, sources, t)
        return self._seen[key]

    def _resolved(self, name: str, sources: Sequence[str], t: float) -> Mapping[str, Any]:
        found = tuple(
            tuple(
                self._first(parameter, i, chain, name if parameter.per == "merge" else source, t)
                for i, (chain, source) in enumerate(
                    zip(chains, sources, strict=parameter.per == "model")
                )
            )
            for parameter, chains in self._varying
        )
        if found not in self._known:
            varying = {
                parameter.name: _value(parameter, values)
                for (parameter, _), values in zip(self._varying, found, strict=True)
            }
            self._known[found] = {**self._constant, **varying}
        return self._known[found]

    def _first(
        self, parameter: Parameter, model: int, chain: Sequence[Setting], tensor: str, t: float
    ) -> Scalar:
        for setting in chain:
            value = resolve(setting, tensor, t)
            if value is not None:
                return value
        if chain:
            self.unsaid.setdefault((parameter.name, model), tensor)
        return parameter.default


def _value(parameter: Parameter, values: tuple[Any, ...]) -> Any:
    return values[0] if parameter.per == "merge" else values
