"""The model card: what a checkpoint was made of, how, and with which versions."""

import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_PACKAGES = ("modelglue", "torch", "safetensors", "transformers", "huggingface_hub", "numpy")
_OF_THE_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@[^\s/]+")


def model_card(
    name: str,
    *,
    method: str,
    inputs: Sequence[tuple[str, str, str]],
    config: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    notes: str = "",
) -> str:
    """Markdown with YAML front matter, as the Hub reads it.

    Args:
        name: of the model; the title.
        method: what made it: "linear", "ties", …
        inputs: (name, where it came from, fingerprint) of every model that went in; the second
            is a checkpoint's `ref`, which names a model of the Hub with its revision.
        config: the configuration that was carried out, shown as YAML.
        parameters: of the method, where the configuration doesn't say them.
        versions: of packages; by default those installed.
        notes: further Markdown, after the summary.

    Returns:
        The text of README.md.
    """
    # The Hub takes only its own names for base_model, and a path of ours tells nobody anything.
    hub = [_OF_THE_HUB.fullmatch(where) for _, where, _ in inputs]
    origins = [
        match["name"] if match else label for match, (label, *_) in zip(hub, inputs, strict=True)
    ]
    front = {
        "base_model": list(dict.fromkeys(origins)),
        "library_name": "transformers",
        "tags": ["merge", "modelglue"],
    }
    count = f"{len(inputs)} model" + ("s" if len(inputs) != 1 else "")
    parts = [
        f"---\n{_yaml(front)}---",
        f"# {_text(name)}",
        f"Made by [modelglue](https://pypi.org/project/modelglue) from {count} with the method "
        f"`{method}`. Nothing was trained.",
    ]
    if notes:
        parts.append(notes.strip())
    parts.append("## Inputs\n\n" + _table(("model", "from", "fingerprint"), inputs))
    if parameters:
        parts.append(f"## Parameters\n\n{_fenced(parameters)}")
    if config is not None:
        parts.append(f"## Configuration\n\n{_fenced(config)}")
    known = versions if versions is not None else installed_versions()
    parts.append("## Versions\n\n" + _table(("package", "version"), list(known.items())))
    return "\n\n".join(parts) + "\n"


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide about a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)


def _fenced(value: Mapping[str, Any]) -> str:
    text = _yaml(value)
    # A value may hold a fence itself; the outer one must be longer.
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}yaml\n{text}{fence}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", value)
    return " ".join(escaped.split())
