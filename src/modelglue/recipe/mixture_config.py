"""The recipe's section on what stands behind a router, and how it is routed.

mixture: none                    # the best family's model alone
mixture: model                   # whole models, one route a sample: the default
mixture: F-L-T                   # the paper's name of an FFN-level mixture, routed by token
mixture: {level: block, router: mlp, shared_layers: 4, experts: models}
mixture: {initialisation: knn}   # a router made of the experts' scores on the search items
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modelglue.mixture.notation import MixtureKind, parse_kind
from modelglue.registry import nearest

OWN: Mapping[str, tuple[str, ...]] = {
    "experts": ("families", "models"),
    "initialisation": ("discriminant", "mean_difference", "nearest_mean", "random", "knn"),
}


@dataclass(frozen=True)
class FinalMixture:
    """Which mixture a recipe ends in.

    Attributes:
        kind: its level and routers; None for no mixture.
        experts: "families": the best model of each family, the paper's; "models": the single models
            that lead at a task, over the merge of their family, which lends what experts share.
        initialisation: of the routers, see `mixture.router_prompts` and `mixture.router_scores`.
    """

    kind: MixtureKind | None = field(default_factory=MixtureKind)
    experts: Literal["families", "models"] = "families"
    initialisation: str = "discriminant"

    @property
    def by_scores(self) -> bool:
        """Whether routers are made of what the experts scored, and of no prompts."""
        return self.initialisation == "knn"

    @property
    def narrows(self) -> bool:
        """Whether a family that shares the tasks with others is searched once more for its own."""
        return self.kind is not None and self.experts == "families"

    def to_mapping(self) -> Any:
        """As YAML has it, defaults filled in."""
        if self.kind is None:
            return "none"
        own = {"experts": self.experts, "initialisation": self.initialisation}
        return self.kind.to_mapping() | own


def parse_mixture(value: object, problems: list[str]) -> FinalMixture:
    """Read the section; what is wrong is added to `problems`."""
    if value is None:
        return FinalMixture()
    if value == "none":
        return FinalMixture(kind=None)
    own: dict[str, Any] = {}
    if isinstance(value, dict):
        own = {key: value[key] for key in OWN if value.get(key) is not None}
        value = {key: setting for key, setting in value.items() if key not in OWN}
    for key, word in own.items():
        if word not in OWN[key]:
            problems.append(
                f"mixture.{key}: {word!r} is none of {', '.join(OWN[key])}"
                f"{nearest(str(word), OWN[key])}"
            )
    return FinalMixture(parse_kind(value, where="mixture", problems=problems), **own)
