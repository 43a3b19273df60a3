"""From what YAML holds to a `MergeConfig`, or all that is wrong with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelglue.errors import ConfigError
from modelglue.merge.config.inputs import arrange, count_problem, twice
from modelglue.merge.config.parse_tokenizer import parse_tokenizer, reference
from modelglue.merge.config.schema import (
    DTYPES,
    MergeConfig,
    ModelEntry,
    ModuleEntry,
    SliceEntry,
)
from modelglue.merge.config.values import Resolver, Setting, Settings, read_setting
from modelglue.merge.method import METHODS, Method
from modelglue.registry import nearest

KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
)


def parse(value: object, *, root: Path) -> MergeConfig:
    """Check a mapping as YAML gives it.

    Raises:
        ConfigError: with every problem, its key path and the nearest valid spelling.
    """
    if not isinstance(value, dict):
        raise ConfigError("the configuration is no mapping; it needs merge_method and models")
    problems: list[str] = []
    check_keys(value, KEYS, "", problems)
    method = _method(value.get("merge_method"), problems)
    reader = _Reader(method, problems)
    config = MergeConfig(
        str(value.get("merge_method")),
        base_model=reader.base(value, ""),
        parameters=reader.settings(value.get("parameters"), "parameters", own=False),
        dtype=_dtype(value, "dtype", problems),
        out_dtype=_dtype(value, "out_dtype", problems),
        root=root,
        **reader.parts(value),
    )
    config = replace(config, tokenizer=parse_tokenizer(value, config.references, problems))
    if method is not None:
        config = _with_base(config)
        problems += _method_problems(config, method, problems)
    if problems:
        raise ConfigError(problems)
    return config


def check_keys(
    value: Mapping[Any, Any], known: Iterable[str], where: str, problems: list[str]
) -> None:
    """Report the keys that nobody knows, with the nearest that somebody does."""
    known = tuple(known)
    prefix = f"{where}." if where else ""
    problems += [
        f"{prefix}{key}: unknown key{nearest(str(key), known)}" for key in value if key not in known
    ]


def _method(name: object, problems: list[str]) -> Method | None:
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    if name is None:
        problems.append(f"merge_method: missing. Known: {', '.join(METHODS)}")
    else:
        close = nearest(str(name), METHODS)
        problems.append(f"merge_method: {name!r} is none of {', '.join(METHODS)}{close}")
    return None


def _dtype(value: Mapping[str, Any], key: str, problems: list[str]) -> str | None:
    name = value.get(key)
    if name is None:
        return None
    short = name.removeprefix("torch.") if isinstance(name, str) else name
    if not isinstance(short, str) or short not in DTYPES:
        close = nearest(str(name), DTYPES)
        problems.append(f"{key}: {name!r} is none of {', '.join(DTYPES)}{close}")
        return None
    return DTYPES[short]


class _Reader:
    """Reads the parts of a configuration that name models and set parameters."""

    def __init__(self, method: Method | None, problems: list[str]) -> None:
        self._method = method
        self._problems = problems

    def parts(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """`models`, `slices` or `modules`; exactly one of them."""
        given = [key for key in ("models", "slices", "modules") if value.get(key)]
        if len(given) != 1:
            found = f"; {' and '.join(given)} are given" if given else ""
            self._problems.append(f"models: one of models, slices and modules is needed{found}")
            return {}
        if given == ["modules"]:
            return {"modules": self._modules(value["modules"])}
        return self._models_or_slices(value, "")

    def _modules(self, value: object) -> dict[str, ModuleEntry]:
        if not isinstance(value, dict):
            self._problems.append("modules: is no mapping of a module's name to what is merged")
            return {}
        return {str(name): self._module(str(name), entry) for name, entry in value.items()}

    def _module(self, name: str, value: object) -> ModuleEntry:
        where = f"modules.{name}"
        if not isinstance(value, dict):
            self._problems.append(f"{where}: is no mapping; it needs models or slices")
            return ModuleEntry()
        check_keys(value, ("models", "slices", "parameters"), where, self._problems)
        if bool(value.get("models")) == bool(value.get("slices")):
            self._problems.append(f"{where}: one of models and slices is needed")
            return ModuleEntry()
        settings = self.settings(value.get("parameters"), f"{where}.parameters", own=False)
        return ModuleEntry(**self._models_or_slices(value, f"{where}."), parameters=settings)

    def _models_or_slices(self, value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        if value.get("models"):
            return {"models": self._entries(value["models"], f"{prefix}models", ranges=False)}
        where = f"{prefix}slices"
        if not isinstance(value["slices"], list):
            self._problems.append(f"{where}: a list of {{sources: …}} is needed")
            return {}
        return {
            "slices": tuple(
                self._slice(entry, f"{where}[{i}]") for i, entry in enumerate(value["slices"])
            )
        }

    def _slice(self, value: object, where: str) -> SliceEntry:
        if not isinstance(value, dict):
            self._problems.append(f"{where}: is no mapping; it needs sources")
            return SliceEntry(())
        if value.get("residual_weight") is not None:
            self._problems.append(
                f"{where}.residual_weight: has no effect, in mergekit neither; leave it out"
            )
        known = ("sources", "parameters", "base_model", "residual_weight")
        check_keys(value, known, where, self._problems)
        return SliceEntry(
            self._entries(value.get("sources"), f"{where}.sources", ranges=True),
            self.settings(value.get("parameters"), f"{where}.parameters", own=False),
            self.base(value, f"{where}."),
        )

    def _entries(self, value: object, where: str, *, ranges: bool) -> tuple[ModelEntry, ...]:
        if not isinstance(value, list) or not value:
            self._problems.append(f"{where}: a list of at least one {{model: …}} is needed")
            return ()
        found = [self._entry(e, f"{where}[{i}]", ranges=ranges) for i, e in enumerate(value)]
        entries = tuple(entry for entry in found if entry is not None)
        self._problems += [f"{where}: {model} is listed twice" for model in twice(entries)]
        lengths = {
            entry.layer_range[1] - entry.layer_range[0] for entry in entries if entry.layer_range
        }
        if len(lengths) > 1:
            counts = " and ".join(map(str, sorted(lengths)))
            self._problems.append(f"{where}: the sources have {counts} layers, not as many each")
        return entries

    def _entry(self, value: object, where: str, *, ranges: bool) -> ModelEntry | None:
        if isinstance(value, str) and not ranges:
            value = {"model": value}
        if not isinstance(value, dict):
            self._problems.append(f"{where}: is no mapping; it needs model")
            return None
        known = ("model", "parameters", "layer_range") if ranges else ("model", "parameters")
        check_keys(value, known, where, self._problems)
        model = reference(value.get("model"), f"{where}.model", self._problems)
        settings = self.settings(value.get("parameters"), f"{where}.parameters", own=True)
        layers = self._layer_range(value, where) if ranges else None
        return ModelEntry(model, settings, layers) if model else None

    def _layer_range(self, value: Mapping[str, Any], where: str) -> tuple[int, int] | None:
        match value.get("layer_range"):
            case [int(first), int(last)] if 0 <= first < last:
                return first, last
            case given:
                self._problems.append(
                    f"{where}.layer_range: {given!r} is not [first, last], counted from 0, without "
                    "the last"
                )
        return None

    def base(self, value: Mapping[str, Any], prefix: str) -> str | None:
        """A `base_model`, if there is one."""
        if value.get("base_model") is None:
            return None
        return reference(value["base_model"], f"{prefix}base_model", self._problems)

    def settings(self, value: object, where: str, *, own: bool) -> dict[str, Setting]:
        """Parameters of a level; `own` is that of a single model."""
        if value is None or self._method is None:
            return {}
        if not isinstance(value, dict):
            self._problems.append(f"{where}: is no mapping")
            return {}
        known = [parameter.name for parameter in self._method.parameters]
        settings = {}
        for name, given in value.items():
            parameter = self._method.parameter(str(name))
            if parameter is None:
                close = nearest(str(name), known)
                self._problems.append(
                    f"{where}.{name}: {self._method.name} has no such parameter{close}"
                )
            elif own and parameter.per == "merge":
                self._problems.append(
                    f"{where}.{name}: holds for all models alike; put it under the parameters of "
                    "the merge or of a slice"
                )
            else:
                settings[name] = read_setting(given, parameter, f"{where}.{name}", self._problems)
        return settings


def _with_base(config: MergeConfig) -> MergeConfig:
    """With the base among the models, where mergekit merges it in."""

    def complete(part: ModuleEntry) -> ModuleEntry:
        if config.base_model is None or not config.merges_base(part):
            return part
        return replace(part, models=(*part.models, ModelEntry(config.base_model)))

    models = complete(ModuleEntry(config.models)).models
    modules = {name: complete(part) for name, part in config.modules.items()}
    return replace(config, models=models, modules=modules)


def _method_problems(config: MergeConfig, method: Method, told: Sequence[str]) -> list[str]:
    """What the method lacks, but for what follows from other problems that are told."""
    problems: list[str] = []
    unset = any("parameters" in problem for problem in told)
    baseless = any("base_model" in problem for problem in told)
    for name, part in config.parts.items():
        prefix = f"modules.{name}." if name else ""
        for i, group in enumerate(part.groups):
            where = f"{prefix}slices[{i}]" if part.slices else f"{prefix}models"
            inputs = arrange(method, group, config.base_model)
            added = [*inputs.models, *([inputs.base] if inputs.base else [])]
            broken = not group.sources or any(problem.startswith(where) for problem in told)
            if part.slices and not broken and any(e.layer_range is None for e in added):
                base = group.base_model or config.base_model
                problems.append(f"{where}: the base {base} is not among the sources")
            if not broken and (wrong := count_problem(method, inputs)):
                problems.append(f"{where}: {wrong}")
            if inputs.base is None and method.needs_base and not baseless:
                problems.append(f"{where}: {method.name} needs a base_model")
            if unset or broken:
                continue
            levels = [group.parameters, part.parameters, config.parameters]
            own = [entry.parameters for entry in inputs.models]
            problems += _lacking(method, levels, own, where)
            if not problems:
                resolver = Resolver(method, levels, own)
                wrong = (
                    method.check(resolver("", [""] * len(own), 0.0)) if resolver.constant else None
                )
                problems += [f"parameters: {wrong}"] if wrong else []
    return list(dict.fromkeys(problems))


def _lacking(method: Method, levels: list[Settings], own: list[Settings], where: str) -> list[str]:
    problems = []
    for parameter in method.parameters:
        some = any(parameter.name in settings for settings in own)
        # A weight that only some have was most likely forgotten for the others.
        partial = parameter.name == "weight" and some
        if (parameter.default is not None and not partial) or parameter.optional:
            continue
        if any(parameter.name in level for level in levels):
            continue
        if parameter.per == "merge":
            problems.append(f"parameters.{parameter.name}: must be given: {parameter.help}")
        elif any(parameter.name not in settings for settings in own):
            problems.append(
                f"{where}: {parameter.name} must be given for every model: {parameter.help}"
            )
    return problems
