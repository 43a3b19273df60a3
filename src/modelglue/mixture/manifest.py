"""`mixture.json`: what a bundle says of itself, checked before anything else is opened."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelglue.errors import MixtureError
from modelglue.mixture.features import Feature
from modelglue.mixture.router_file import KINDS
from modelglue.registry import nearest

FORMAT = 1
FILE = "mixture.json"


@dataclass(frozen=True)
class ExpertEntry:
    """An expert of a bundle.

    Args:
        path: its folder, relative to the bundle.
        fingerprint: of its content, as `Checkpoint.fingerprint` gives it.
        reason: why it is in, in words.
    """

    name: str
    path: str
    fingerprint: str
    reason: str = ""


@dataclass(frozen=True)
class Manifest:
    """The content of `mixture.json`.

    Args:
        encoder: which expert the feature is taken from, its place in `experts`.
        router: how the router was made and how it fared; told to readers, not used.
        router_kind: which of `router_file.KINDS` it is.
        top_k: how many experts answer a prompt together.
    """

    experts: tuple[ExpertEntry, ...]
    encoder: int
    feature: Feature
    router: Mapping[str, Any] = field(default_factory=dict)
    router_kind: str = "linear"
    top_k: int = 1

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "format": FORMAT,
            "level": "model",
            "top_k": self.top_k,
            "router": {"kind": self.router_kind, **self.router},
            "feature": {
                "encoder": self.experts[self.encoder].name,
                "layer": self.feature.layer,
                "pooling": self.feature.pooling,
                "max_tokens": self.feature.max_tokens,
            },
            "experts": [
                {
                    "name": expert.name,
                    "path": expert.path,
                    "fingerprint": expert.fingerprint,
                    "reason": expert.reason,
                }
                for expert in self.experts
            ],
        }


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`, its experts' folders known to be there.

    Raises:
        MixtureError: there is none, it can't be understood, or an expert is missing or lies
            outside the bundle.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MixtureError(f"{folder} is not a mixture: it has no {FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise MixtureError(f"{path} can't be read: {error}") from None
    reader = _Reader(path)
    if reader.get(content, "format", int) != FORMAT:
        raise reader.problem(f"format {content['format']} is not known; this reads {FORMAT}")
    if reader.get(content, "level", str) != "model":
        raise reader.problem(f"level: {content['level']!r} is not served here; only 'model' is")
    router = reader.get(content, "router", dict)
    if reader.get(router, "kind", str) not in KINDS:
        raise reader.problem(
            f"router.kind: {router['kind']!r} is not known{nearest(router['kind'], KINDS)}; "
            f"{', '.join(KINDS)} are"
        )
    experts = tuple(_expert(reader, entry) for entry in reader.get(content, "experts", list))
    names = [expert.name for expert in experts]
    if not names or len(set(names)) < len(names):
        raise reader.problem("experts: there must be one at least, each with its own name")
    top_k = reader.get(content, "top_k", int)
    if not 1 <= top_k <= len(experts):
        raise reader.problem(f"top_k: {top_k} of {len(experts)} experts cannot answer together")
    for expert in experts:
        _require_inside(folder, expert)
    described = reader.get(content, "feature", dict)
    encoder = reader.get(described, "encoder", str)
    if encoder not in names:
        raise reader.problem(f"feature.encoder: {encoder!r} is none of {', '.join(names)}")
    feature = Feature(
        layer=reader.get(described, "layer", int),
        max_tokens=reader.get(described, "max_tokens", int),
        pooling=reader.get(described, "pooling", str),
    )
    if feature.layer < 0 or feature.max_tokens < 1 or feature.pooling != "mean":
        raise reader.problem(f"feature: {described} can't be computed")
    told = {key: value for key, value in router.items() if key != "kind"}
    return Manifest(experts, names.index(encoder), feature, told, router["kind"], top_k)


class _Reader:
    """Takes values of the right type out of JSON, or says which key is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def problem(self, text: str) -> MixtureError:
        return MixtureError(f"{self._path}: {text}")

    def get(self, content: Any, key: str, kind: type) -> Any:
        if not isinstance(content, dict) or key not in content:
            raise self.problem(f"{key!r} is missing")
        value = content[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.problem(f"{key!r} must be of type {kind.__name__}, and is {value!r}")
        return value


def _expert(reader: _Reader, entry: Any) -> ExpertEntry:
    return ExpertEntry(
        *(reader.get(entry, key, str) for key in ("name", "path", "fingerprint", "reason"))
    )


def _require_inside(folder: Path, expert: ExpertEntry) -> None:
    try:
        place = (folder / expert.path).resolve()
        stands = (place / "config.json").is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name too long, a loop of links
        raise MixtureError(
            f"{folder}: expert {expert.name!r} has the path {expert.path!r}, which is none: {error}"
        ) from None
    if folder.resolve() not in place.parents:
        raise MixtureError(
            f"{folder}: expert {expert.name!r} has the path {expert.path!r}, which leaves the "
            "bundle; experts must lie inside it"
        )
    if not stands:
        raise MixtureError(
            f"{folder}: expert {expert.name!r} is missing: {expert.path} holds no config.json"
        )
