"""What a user writes to ask for a mixture.

    experts:
      - {model: models/maths, prompts: ["What is 3 + 4?", …]}
      - {model: org/coder@main, name: coder, prompts: prompts/code.txt, negatives: [ … ]}
    kind: M-L-S                       # or {level: ffn, router: linear, input: token, top_k: 2, …}
    initialisation: discriminant      # mean_difference, nearest_mean, random; knn with scores
    seed: 0                           # for what is random
    scores: items.jsonl               # for prompts: {"text": …, "scores": {maths: 1, coder: 0}}
    # whole models
    encoder: maths                    # by default the expert that tells the prompts apart best
    layer: 0                          # the hidden layer that the router sees; 0 is the embedding
    # inside of one checkpoint
    dense: models/merged              # where what is no expert's comes from; default: the first

A file of prompts holds one a line; texts of an expert's domain are prompts as well. Relative paths
are relative to the file.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelglue.errors import ConfigError, InputError
from modelglue.mixture.features import Feature
from modelglue.mixture.mix import NEIGHBOURS
from modelglue.mixture.notation import MixtureKind, impossible, parse_kind
from modelglue.mixture.router_prompts import INITIALISATIONS
from modelglue.mixture.router_scores import ScoreTable
from modelglue.mixture.training_samples import read_scores
from modelglue.registry import nearest
from modelglue.yamlfile import read_yaml

KEYS = ("experts", "kind", "initialisation", "seed", "encoder", "layer", "scores", "dense")
EXPERT_KEYS = ("model", "name", "prompts", "negatives")


@dataclass(frozen=True)
class MixtureConfig:
    """A checked request for a mixture; `prompts` and `negatives` by the expert's name."""

    experts: dict[str, str]
    prompts: dict[str, list[str]]
    negatives: dict[str, list[str]]
    encoder: str | None = None
    initialisation: str = "discriminant"
    layer: int = 0
    kind: MixtureKind = field(default_factory=MixtureKind)
    scores: ScoreTable | None = None
    dense: str | None = None
    seed: int = 0

    @property
    def is_bundle(self) -> bool:
        """Whether whole models stand side by side, each as it is."""
        return self.kind.level == "model" and not self.kind.shared_layers

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `mix`, or of `compose` where it is no bundle."""
        common = {
            "experts": self.experts,
            "prompts": self.prompts,
            "negatives": self.negatives,
            "kind": self.kind,
            "initialisation": self.initialisation,
            "scores": self.scores,
            "seed": self.seed,
        }
        if not self.is_bundle:
            return {**common, "dense": self.dense}
        return {
            **common,
            "encoder": self.encoder,
            "feature": Feature(layer=self.layer),
        }


def load_mixture(path: Path, *, kind: str | None = None) -> MixtureConfig:
    """Read a mixture's configuration.

    Args:
        path: the file.
        kind: in the place of the file's, F-L-T say.

    Raises:
        ConfigError: with everything that is wrong.
    """
    value = read_yaml(path)
    if kind is not None and isinstance(value, dict):
        value = {**value, "kind": kind}
    problems: list[str] = []
    config = _parse(value, path.parent, problems)
    if problems or config is None:
        raise ConfigError(problems, where=str(path))
    return config


def _parse(value: object, root: Path, problems: list[str]) -> MixtureConfig | None:
    if not isinstance(value, dict) or not isinstance(value.get("experts"), list):
        problems.append("experts: a list of {model, prompts} is needed")
        return None
    problems += [f"{key}: unknown key{nearest(str(key), KEYS)}" for key in value if key not in KEYS]
    by_scores = value.get("scores") is not None
    found = [
        _expert(entry, f"experts[{index}]", root, problems, needs_prompts=not by_scores)
        for index, entry in enumerate(value["experts"])
    ]
    experts = [expert for expert in found if expert is not None]
    names = [expert["name"] for expert in experts]
    problems += [
        f"experts: {times} are called {name!r}; tell them apart with name"
        for name, times in Counter(names).items()
        if times > 1
    ]
    kind = MixtureKind()
    if value.get("kind") is not None:
        kind = parse_kind(value["kind"], where="kind", problems=problems)
        if len(names) > 0 and (reason := impossible(kind, experts=len(names))) is not None:
            problems.append(f"kind: {reason}")
    config = MixtureConfig(
        {expert["name"]: expert["model"] for expert in experts},
        {expert["name"]: expert["prompts"] for expert in experts if expert["prompts"]},
        {expert["name"]: expert["negatives"] for expert in experts if expert["negatives"]},
        value.get("encoder"),
        value.get("initialisation", NEIGHBOURS if by_scores else "discriminant"),
        value.get("layer", 0),
        kind,
        _scores(value.get("scores"), names, root, problems),
        _place(value.get("dense"), root),
        value.get("seed", 0),
    )
    _check(config, value, problems)
    return config


def _check(config: MixtureConfig, value: Mapping[str, Any], problems: list[str]) -> None:
    """What is wrong with settings, by themselves or with one another."""
    names = list(config.experts)
    if config.encoder is not None and config.encoder not in names:
        close = nearest(str(config.encoder), names)
        problems.append(f"encoder: {config.encoder!r} is no expert{close}")
    known = (*INITIALISATIONS, NEIGHBOURS)
    if config.initialisation not in known:
        close = nearest(str(config.initialisation), known)
        problems.append(f"initialisation: is none of {', '.join(known)}{close}")
    elif (config.initialisation == NEIGHBOURS) != (value.get("scores") is not None):
        problems.append(f"scores: are for initialisation: {NEIGHBOURS}, which needs them")
    for key, number in (("layer", config.layer), ("seed", config.seed)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            problems.append(f"{key}: must be a whole number of at least 0, not {number!r}")
    elsewhere = ("dense",) if config.is_bundle else ("encoder", "layer")
    where = (
        "in one checkpoint (level: ffn or block, or shared_layers)"
        if config.is_bundle
        else "of whole models (level: model)"
    )
    problems += [
        f"{key}: is for mixtures {where}" for key in elsewhere if value.get(key) is not None
    ]


def _scores(value: object, names: list[str], root: Path, problems: list[str]) -> ScoreTable | None:
    if value is None:
        return None
    if not isinstance(value, str):
        problems.append("scores: must be a .jsonl file")
        return None
    try:
        return read_scores(root / value, names)
    except InputError as error:
        problems.append(f"scores: {error}")
        return None


def _place(value: object, root: Path) -> str | None:
    """A folder beside the file; anything else is left to the checkpoint's own rules."""
    if value is None:
        return None
    local = root / str(value)
    return str(local) if local.exists() else str(value)


def _expert(
    entry: object, where: str, root: Path, problems: list[str], *, needs_prompts: bool
) -> dict[str, Any] | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        problems.append(f"{where}: must be a mapping with model and prompts")
        return None
    problems += [
        f"{where}.{key}: unknown key{nearest(str(key), EXPERT_KEYS)}"
        for key in entry
        if key not in EXPERT_KEYS
    ]
    model = entry["model"]
    prompts = entry.get("prompts", None if needs_prompts else [])
    return {
        "model": _place(model, root),
        "name": str(entry.get("name") or model.rstrip("/").split("/")[-1]),
        "prompts": _texts(prompts, f"{where}.prompts", root, problems),
        "negatives": _texts(entry.get("negatives", []), f"{where}.negatives", root, problems),
    }


def _texts(value: object, where: str, root: Path, problems: list[str]) -> list[str]:
    if isinstance(value, str):
        try:
            content = (root / value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{where}: {value} cannot be read: {error}")
            return []
        # Not splitlines(), which also ends a line at a form feed and at U+2028.
        return [line for line in content.split("\n") if line.strip()]
    if isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value):
        return list(value)
    problems.append(f"{where}: must be a list of texts, or a file with one a line")
    return []
