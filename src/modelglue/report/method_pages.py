"""The merge methods as Markdown pages, made from what each declares.

`python -m modelglue.report.method_pages docs/methods` writes them; a test holds what is committed
to it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from modelglue.merge.method import METHODS, Law

Description = Mapping[str, Any]

BASE = {
    "none": "no use for one: named, it only lends its configuration and tokenizer",
    "optional": "optional",
    "required": "required, apart from the models",
    "first": "required, and the first of the models",
}


def write_pages(folder: Path) -> None:
    """Write an index and a page a method into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name → text of every page."""
    described = [METHODS[name].describe() for name in METHODS]
    return {"README.md": index(described)} | {
        f"{method['name']}.md": page(method) for method in described
    }


def index(methods: Sequence[Description]) -> str:
    """The table of all methods, and what their laws mean."""
    rows = [
        [f"[{m['name']}]({m['name']}.md)", m["summary"].rstrip("."), count_of(m), m["base"]]
        for m in methods
    ]
    laws = [[_words(law.name), law.value] for law in Law]
    return _document(
        "# Merge methods",
        "θ₀ is the base, θᵢ the models, τᵢ = θᵢ − θ₀ their task vectors. Sums are float32, "
        "whatever the models are stored in, and cast once. Parameters are those of mergekit; where "
        "a method means something else than there, its page says so and why. In Python: "
        "`modelglue.methods.ties(tensors, base, density=0.5)`. `make docs` makes these pages.",
        _table(["Method", "What it does", "Models", "Base"], rows),
        "## Laws",
        "Each page names the laws that its method obeys: idempotent, anchored and "
        "translation-equivariant at default parameters, the others at any. Tests hold a method to "
        "these, and to failing the rest.",
        _table(["Law", "Meaning"], laws),
    )


def page(method: Description) -> str:
    """All about one method."""
    rows = [
        [f"`{p['name']}`", f"a {p['per']}", _default(p), _range(p), p["help"]]
        for p in method["parameters"]
    ]
    titles = ["Parameter", "One for", "Default", "Range", "Meaning"]
    laws = ", ".join(map(_words, method["laws"])) or "none"
    return _document(
        f"# {method['name']}",
        method["formula"],
        f"Models: {count_of(method)}. Base: {BASE[method['base']]}.",
        *([_table(titles, rows)] if rows else ["It has no parameters."]),
        f"Laws: {laws} ([what they mean](README.md#laws)).",
        "```yaml\n" + yaml.safe_dump(example(method), sort_keys=False).strip() + "\n```",
    )


def example(method: Description) -> dict[str, Any]:
    """A configuration of two models, if that many are allowed, with the defaults spelt out."""
    _, most = method["models"]
    own: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for p in method["parameters"]:
        if p["default"] is not None and not p["help"].startswith("accepted"):
            (own if p["per"] == "model" else shared)[p["name"]] = p["default"]
    names = ["path/to/one", "path/to/another"][: most or 2]
    if method["base"] == "first":
        names = ["path/to/base", "path/to/one"]
    config: dict[str, Any] = {"merge_method": method["name"]}
    if method["base"] in ("first", "required"):
        config["base_model"] = "path/to/base"
    config["models"] = [_entry(name, method, own) for name in names]
    return config | ({"parameters": shared} if shared else {})


def _entry(name: str, method: Description, own: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(own)
    for p in method["parameters"]:
        if p["kind"] == "checkpoint":
            values[p["name"]] = f"{name}.{p['name']}"
    return {"model": name} | ({"parameters": values} if values else {})


def default_of(parameter: Description) -> str:
    """What holds where the configuration is silent."""
    if parameter["default"] is None:
        return "none" if parameter["optional"] else "must be given"
    return str(parameter["default"]).lower()


def range_of(parameter: Description) -> str:
    """Which values are allowed."""
    low, high, kind = parameter["low"], parameter["high"], parameter["kind"]
    if kind in ("boolean", "choice"):
        return ", ".join(parameter["choices"] or ("true", "false"))
    if low is None and high is None:
        return {"checkpoint": "a path or name", "integer": "any whole number"}.get(kind, "any")
    above = "above" if parameter["above"] else "at least"
    both = f"{low} to {high}" + (f", {low} excluded" if parameter["above"] else "")
    return f"{above} {low}" if high is None else f"at most {high}" if low is None else both


def count_of(method: Description) -> str:
    """How many models it takes."""
    least, most = method["models"]
    return (
        f"{least} or more" if most is None else str(least) if least == most else f"{least}–{most}"
    )


def _default(parameter: Description) -> str:
    default = default_of(parameter)
    return default if parameter["default"] is None else f"`{default}`"


def _range(parameter: Description) -> str:
    if parameter["kind"] in ("boolean", "choice"):
        return ", ".join(f"`{choice}`" for choice in range_of(parameter).split(", "))
    return range_of(parameter)


def _words(law: str) -> str:
    return law.lower().replace("_", "-")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _document(*blocks: str) -> str:
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
