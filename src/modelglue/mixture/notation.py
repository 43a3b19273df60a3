"""What kind of mixture: its level, its routers, what they see; and what cannot exist.

    F-L-T   FFN level, linear router, routed token by token
    B-L-S   block level, linear router, routed once a sample
    M-M-S   model level, MLP router, routed once a sample

The letters are the Model-GLUE paper's (arXiv 2410.05357).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelglue.registry import nearest

Level = Literal["model", "block", "ffn"]
RouterKind = Literal["linear", "mlp"]
Input = Literal["sample", "token"]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "level": ("model", "block", "ffn"),
    "router": ("linear", "mlp"),
    "input": ("sample", "token"),
}
_SHORT = re.compile(r"([FBM])-([LM])-([ST])", re.IGNORECASE)
_WORDS = {
    "level": {"F": "ffn", "B": "block", "M": "model"},
    "router": {"L": "linear", "M": "mlp"},
    "input": {"S": "sample", "T": "token"},
}


@dataclass(frozen=True)
class MixtureKind:
    """One cell of the paper's tables.

    Attributes:
        level: what is an expert: the feed-forward part of each layer, each decoder layer, or whole
            models.
        router: linear, or two layers with ReLU.
        input: what a router decides for: a whole sample, once, when its prompt is read; or every
            token anew.
        top_k: experts that answer together, weighted by the router.
        shared_layers: layers at the bottom that all experts share (the dense model's).
    """

    level: Level = "model"
    router: RouterKind = "linear"
    input: Input = "sample"
    top_k: int = 1
    shared_layers: int = 0

    @property
    def short(self) -> str:
        """The paper's name, F-L-T say.

        >>> MixtureKind("block", "mlp").short
        'B-M-S'
        """
        return "-".join(word[0].upper() for word in (self.level, self.router, self.input))

    def to_mapping(self) -> dict[str, Any]:
        """As a recipe has it."""
        return {
            "level": self.level,
            "router": self.router,
            "input": self.input,
            "top_k": self.top_k,
            "shared_layers": self.shared_layers,
        }


def parse_kind(value: object, *, where: str, problems: list[str]) -> MixtureKind:
    """Read a short name ("B-L-S") or a mapping with `level`, `router`, `input`, ….

    Args:
        value: what the user wrote.
        where: the place to name in messages.
        problems: gets everything that is wrong; the result counts only if nothing was.
    """
    if isinstance(value, str):
        if value in CHOICES["level"]:
            value = {"level": value}
        else:
            return _from_short(value, where, problems)
    if not isinstance(value, dict):
        problems.append(f"{where}: must be a mapping with level, router, input, or F-L-T and such")
        return MixtureKind()
    keys = (*CHOICES, "top_k", "shared_layers")
    problems += [
        f"{where}.{key}: unknown key{nearest(str(key), keys)}" for key in value if key not in keys
    ]
    words = {key: value[key] for key in CHOICES if value.get(key) is not None}
    for key, word in words.items():
        if word not in CHOICES[key]:
            problems.append(
                f"{where}.{key}: {word!r} is none of {', '.join(CHOICES[key])}"
                f"{nearest(str(word), CHOICES[key])}"
            )
    numbers: dict[str, Any] = {}
    for key, least in (("top_k", 1), ("shared_layers", 0)):
        number = value.get(key)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            problems.append(f"{where}.{key}: must be a whole number from {least}, is {number!r}")
        else:
            numbers[key] = number
    if any(problem.startswith(where) for problem in problems):
        return MixtureKind()
    # Tokens are what FFN-level routers usually decide for; no other level can.
    words.setdefault("input", "token" if words.get("level") == "ffn" else "sample")
    kind = MixtureKind(**words, **numbers)
    if (reason := impossible(kind)) is not None:
        problems.append(f"{where}: {reason}")
    return kind


def _from_short(text: str, where: str, problems: list[str]) -> MixtureKind:
    found = _SHORT.fullmatch(text.strip())
    if found is None:
        problems.append(
            f"{where}: {text!r} is no mixture; write F-L-T (level F, B or M; router L or M; input "
            "S or T), or a mapping with level, router, input"
        )
        return MixtureKind()
    letters = (letter.upper() for letter in found.groups())
    words: dict[str, Any] = {
        key: _WORDS[key][letter] for key, letter in zip(_WORDS, letters, strict=True)
    }
    kind = MixtureKind(**words)
    if (reason := impossible(kind)) is not None:
        problems.append(f"{where}: {reason}")
    return kind


def impossible(kind: MixtureKind, *, experts: int | None = None) -> str | None:
    """Why a mixture cannot exist, with the nearest one that can; None if it can.

    Args:
        experts: how many there are, where that is known.
    """
    if kind.level != "ffn" and kind.input == "token":
        what = "whole models" if kind.level == "model" else "whole layers"
        top_k = 1 if kind.level == "block" or kind.shared_layers else kind.top_k
        near = MixtureKind(kind.level, kind.router, "sample", top_k, kind.shared_layers)
        return (
            f"{kind.short} cannot exist: {what} cannot change from token to token, as each needs "
            f"keys and values of all tokens before; use {near.short} (input: sample, "
            f"top_k: {top_k}), or level: ffn"
        )
    if kind.level == "block" and kind.top_k > 1:
        return (
            f"top_k: {kind.top_k} at block level would run {kind.top_k} layers and mix what they "
            "say in each; use top_k: 1, or level: ffn"
        )
    if kind.level == "model" and kind.shared_layers and kind.top_k > 1:
        return (
            f"top_k: {kind.top_k} beside shared_layers: {kind.shared_layers} at model level: "
            "experts that answer together share no layers; use top_k: 1, or shared_layers: 0"
        )
    if experts is not None and kind.top_k > experts:
        return f"top_k: {kind.top_k} of {experts} experts; use at most {experts}"
    return None
