"""What a user writes to ask for a merge: mergekit's YAML, checked completely before any work.

Relative paths are looked up beside the file, then where the command is run. A parameter is looked
for at four levels, the nearest first: the model's own in `models` or `sources`, the slice's, the
module's, and those of the whole merge; then it has its default.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelglue.errors import ConfigError
from modelglue.merge.config.tokenizer import TokenizerConfig, TokenSource
from modelglue.merge.config.values import Resolver, Settings, plain
from modelglue.merge.method import METHODS, Method
from modelglue.yamlfile import read_yaml

__all__ = [
    "DTYPES",
    "MergeConfig",
    "ModelEntry",
    "ModuleEntry",
    "SliceEntry",
    "TokenSource",
    "TokenizerConfig",
    "load_config",
    "parse_config",
]

# YAML's name, the safetensors name
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True)
class ModelEntry:
    """A model, or some of its layers, and its own parameter values.

    Attributes:
        layer_range: the first of its layers and the one after the last; None for all.
    """

    model: str
    parameters: Settings = field(default_factory=dict)
    layer_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class SliceEntry:
    """Layers of the output: as many of each source, merged one by one.

    Attributes:
        base_model: of this slice; None for the merge's.
    """

    sources: tuple[ModelEntry, ...]
    parameters: Settings = field(default_factory=dict)
    base_model: str | None = None


@dataclass(frozen=True)
class ModuleEntry:
    """A part of the output: whole models merged, or slices stacked."""

    models: tuple[ModelEntry, ...] = ()
    slices: tuple[SliceEntry, ...] = ()
    parameters: Settings = field(default_factory=dict)

    @property
    def groups(self) -> tuple[SliceEntry, ...]:
        """What is merged together: every slice, or the models as one of all layers."""
        return self.slices or (SliceEntry(self.models),)


@dataclass(frozen=True)
class MergeConfig:
    """A merge that was asked for; everything but the checkpoints themselves is checked.

    Attributes:
        models, slices, modules: one of the three is given.
        dtype, out_dtype: safetensors names; the output has `out_dtype`, else `dtype`, else
            whatever dtype holds the values of all inputs. Arithmetic is in float32 in any case.
        root: what relative paths are relative to.
    """

    merge_method: str
    models: tuple[ModelEntry, ...] = ()
    base_model: str | None = None
    parameters: Settings = field(default_factory=dict)
    dtype: str | None = None
    root: Path = Path()
    slices: tuple[SliceEntry, ...] = ()
    modules: Mapping[str, ModuleEntry] = field(default_factory=dict)
    out_dtype: str | None = None
    tokenizer: TokenizerConfig | None = None

    @property
    def method(self) -> Method:
        """The registered method."""
        return METHODS[self.merge_method]

    @property
    def parts(self) -> Mapping[str, ModuleEntry]:
        """The modules; one named "" where the model is not divided."""
        return self.modules or {"": ModuleEntry(self.models, self.slices)}

    @property
    def references(self) -> tuple[str, ...]:
        """Every model that is named, the base as well, in the order of the text."""
        found: dict[str, str] = {}
        for reference in [*self._named(), *([self.base_model] if self.base_model else [])]:
            found.setdefault(same_model(reference), reference)
        return tuple(found.values())

    def merges_base(self, part: ModuleEntry) -> bool:
        """Whether mergekit merges a base that is not listed into a part as one more model.

        It does for methods that have no use for a base, if all that such a model needs stands at
        the level of the merge. In every other case such a base only lends its configuration.
        """
        if self.base_model is None or self.method.base != "none" or not part.models:
            return False
        said = self.parameters.keys() | part.parameters.keys()
        own = [p for p in self.method.parameters if p.per == "model" and not p.optional]
        most = self.method.models[1]
        listed = {same_model(entry.model) for entry in part.models}
        return (
            same_model(self.base_model) not in listed
            and all(parameter.name in said for parameter in own)
            and (most is None or len(part.models) < most)
        )

    @property
    def statistics(self) -> tuple[str, ...]:
        """Every checkpoint of statistics that is named."""
        named = [
            str(level[parameter.name])
            for parameter in self.method.parameters
            if parameter.kind == "checkpoint"
            for level in self._levels()
            if level.get(parameter.name) is not None
        ]
        return tuple(dict.fromkeys(named))

    def _levels(self) -> Iterator[Settings]:
        for part in self.parts.values():
            for group in part.groups:
                yield from (entry.parameters for entry in group.sources)
                yield group.parameters
            yield part.parameters
        yield self.parameters

    def _named(self) -> Iterator[str]:
        for part in self.parts.values():
            for group in part.groups:
                yield from (entry.model for entry in group.sources)
                if group.base_model:
                    yield group.base_model

    def values(self) -> dict[str, Any]:
        """The parameters of a tensor outside of the layers that no filter names, of `models`."""
        own = [entry.parameters for entry in self.models]
        resolver = Resolver(self.method, [self.parameters], own)
        return dict(resolver("", [""] * len(own), 0.0))

    def to_mapping(self) -> dict[str, Any]:
        """The same as a YAML mapping."""
        parts = self.parts.values()
        mapping: dict[str, Any] = {"merge_method": self.merge_method}
        mapping |= _part(ModuleEntry(self.models, self.slices))
        mapping |= _filled(
            modules={name: _part(part) for name, part in self.modules.items()},
            # Read again, a base that lends would be one of the models.
            base_model=None if any(map(self.merges_base, parts)) else self.base_model,
            parameters=_settings(self.parameters),
            dtype=_dtype(self.dtype),
            out_dtype=_dtype(self.out_dtype),
        )
        return mapping | _tokenizer(self.tokenizer)


def same_model(reference: str) -> str:
    """What two spellings of one model have in common: "models/a/" and "./models/a" are alike."""
    return "+".join(os.path.normpath(part) for part in reference.split("+"))


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
    from modelglue.merge.config.parse import parse

    return parse(value, root=root)


def _part(part: ModuleEntry) -> dict[str, Any]:
    return _filled(
        models=[_entry(entry) for entry in part.models],
        slices=[
            _filled(
                sources=[_entry(entry) for entry in group.sources],
                base_model=group.base_model,
                parameters=_settings(group.parameters),
            )
            for group in part.slices
        ],
        parameters=_settings(part.parameters),
    )


def _entry(entry: ModelEntry) -> dict[str, Any]:
    return {"model": entry.model} | _filled(
        layer_range=list(entry.layer_range) if entry.layer_range else None,
        parameters=_settings(entry.parameters),
    )


def _settings(settings: Settings) -> dict[str, Any]:
    return {name: plain(setting) for name, setting in settings.items()}


def _dtype(dtype: str | None) -> str | None:
    return next((name for name, safetensors in DTYPES.items() if safetensors == dtype), None)


def _tokenizer(tokenizer: TokenizerConfig | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    section = _filled(
        source=tokenizer.source,
        tokens={token: _token(source) for token, source in tokenizer.tokens.items()},
        pad_to_multiple_of=tokenizer.pad_to_multiple_of,
    )
    return _filled(tokenizer=section, chat_template=tokenizer.chat_template)


def _token(token: TokenSource) -> dict[str, Any]:
    source: Any = token.model
    if token.zero:
        source = {"kind": "zero"}
    elif token.token is not None or token.token_id is not None:
        source = {"kind": "model_token", "model": token.model}
        source |= {"token_id": token.token_id} if token.token is None else {"token": token.token}
    return _filled(source=source) | ({"force": True} if token.force else {})


def _filled(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}
