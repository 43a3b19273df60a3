"""What a user writes to ask for a merge: mergekit's YAML, checked completely before any work.

Understood here: `merge_method`, `models` (each with `model` and `parameters`), `base_model`,
`parameters`, `dtype`. Relative paths are looked up beside the file, then where the command is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelglue.errors import ConfigError
from modelglue.merge.method import METHODS, Method, Parameter
from modelglue.registry import nearest
from modelglue.yamlfile import read_yaml

# YAML's name, the safetensors name
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
KEYS = ("merge_method", "models", "base_model", "parameters", "dtype")


@dataclass(frozen=True)
class ModelEntry:
    """One model of a merge and its own parameter values."""

    model: str
    parameters: Mapping[str, float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeConfig:
    """A merge that was asked for; everything but the checkpoints themselves is checked.

    Attributes:
        dtype: safetensors name of the output's dtype; None keeps the template's, tensor by tensor.
        root: what relative paths are relative to.
    """

    merge_method: str
    models: tuple[ModelEntry, ...]
    base_model: str | None = None
    parameters: Mapping[str, float | bool] = field(default_factory=dict)
    dtype: str | None = None
    root: Path = Path()

    @property
    def method(self) -> Method:
        """The registered method."""
        return METHODS[self.merge_method]

    def values(self) -> dict[str, Any]:
        """Every parameter of the method resolved: the model's own, else the merge's, else default.

        A parameter per model gives a tuple of n numbers.
        """
        resolved: dict[str, Any] = {}
        for parameter in self.method.parameters:
            shared = self.parameters.get(parameter.name, parameter.default)
            if parameter.per == "merge":
                resolved[parameter.name] = shared
            else:
                resolved[parameter.name] = tuple(
                    entry.parameters.get(parameter.name, shared) for entry in self.models
                )
        return resolved

    def to_mapping(self) -> dict[str, Any]:
        """The same as a YAML mapping."""
        mapping: dict[str, Any] = {
            "merge_method": self.merge_method,
            "models": [
                {"model": entry.model, "parameters": dict(entry.parameters)}
                for entry in self.models
            ],
        }
        names = {safetensors: name for name, safetensors in DTYPES.items()}
        optional = {
            "base_model": self.base_model,
            "parameters": dict(self.parameters),
            "dtype": self.dtype and names[self.dtype],
        }
        return mapping | {key: value for key, value in optional.items() if value}


def load_config(path: Path) -> MergeConfig:
    """Read a merge configuration.

    Raises:
        ConfigError: no such file, no YAML, or anything in it is wrong; all problems at once.
    """
    loaded = read_yaml(path)
    try:
        return parse_config(loaded, root=path.parent)
    except ConfigError as error:
        raise ConfigError(error.problems, where=str(path)) from None


def parse_config(value: object, *, root: Path = Path()) -> MergeConfig:
    """Check a mapping as YAML gives it.

    Raises:
        ConfigError: with every problem, its key path and the nearest valid spelling.
    """
    if not isinstance(value, dict):
        raise ConfigError("the configuration is no mapping; it needs merge_method and models")
    problems = [f"{key}: unknown key{nearest(str(key), KEYS)}" for key in value if key not in KEYS]
    method = _method(value.get("merge_method"), problems)
    entries = _entries(value.get("models"), method, problems)
    shared = _parameters(value.get("parameters"), method, "parameters", problems)
    base = value.get("base_model")
    if base is not None and not isinstance(base, str):
        problems.append("base_model: is no path or name")
    dtype = value.get("dtype")
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        close = nearest(str(dtype), DTYPES)
        problems.append(f"dtype: {dtype!r} is none of {', '.join(DTYPES)}{close}")
    if method is not None:
        problems += _method_problems(method, entries, shared, base)
    if problems:
        raise ConfigError(problems)
    config = MergeConfig(
        value["merge_method"], tuple(entries), base, shared, DTYPES[dtype] if dtype else None, root
    )
    trouble = config.method.check(config.values())
    if trouble:
        raise ConfigError(f"parameters: {trouble}")
    return config


def _method(name: object, problems: list[str]) -> Method | None:
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    if name is None:
        problems.append(f"merge_method: missing. Known: {', '.join(METHODS)}")
    else:
        close = nearest(str(name), METHODS)
        problems.append(f"merge_method: {name!r} is none of {', '.join(METHODS)}{close}")
    return None


def _entries(value: object, method: Method | None, problems: list[str]) -> list[ModelEntry]:
    if not isinstance(value, list) or not value:
        problems.append("models: a list of at least one {model: …} is needed")
        return []
    entries = []
    for index, entry in enumerate(value):
        where = f"models[{index}]"
        if isinstance(entry, str):
            entry = {"model": entry}
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            problems.append(f"{where}.model: a path or org/name is needed")
            continue
        for key in entry.keys() - {"model", "parameters"}:
            known = nearest(str(key), ("model", "parameters"))
            problems.append(f"{where}.{key}: unknown key{known}")
        given = _parameters(entry.get("parameters"), method, f"{where}.parameters", problems)
        entries.append(ModelEntry(entry["model"], given))
    return entries


def _parameters(
    value: object, method: Method | None, where: str, problems: list[str]
) -> dict[str, float | bool]:
    if value is None or method is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{where}: is no mapping")
        return {}
    known: dict[str, Parameter] = {p.name: p for p in method.parameters}
    for name, given in value.items():
        if name not in known:
            close = nearest(str(name), known)
            problems.append(f"{where}.{name}: {method.name} has no such parameter{close}")
        elif where != "parameters" and known[name].per == "merge":
            problems.append(f"{where}.{name}: holds for the whole merge; put it under parameters")
        elif trouble := known[name].problem(given):
            problems.append(f"{where}.{name}: {trouble}")
    return value


def _method_problems(
    method: Method, entries: list[ModelEntry], shared: Mapping[str, Any], base: object
) -> list[str]:
    problems = []
    least, most = method.models
    if entries and not least <= len(entries) <= (most or len(entries)):
        allowed = f"{least}" if most == least else f"{least} to {most or 'any number'}"
        problems.append(f"models: {method.name} takes {allowed}, {len(entries)} are given")
    if method.needs_base and base is None:
        problems.append(f"base_model: {method.name} needs one")
    for parameter in method.parameters:
        if parameter.default is None and parameter.name not in shared:
            lacking = [e.model for e in entries if parameter.name not in e.parameters]
            if parameter.per == "merge" or lacking:
                problems.append(f"parameters.{parameter.name}: must be given: {parameter.help}")
    return problems
