"""What a user writes to ask for a mixture.

    experts:
      - {model: models/maths, prompts: ["What is 3 + 4?", …]}
      - {model: org/coder@main, name: coder, prompts: prompts/code.txt, negatives: [ … ]}
    encoder: maths                    # by default the expert that tells the prompts apart best
    initialisation: discriminant      # or mean_difference, as in the paper
    layer: 0                          # the hidden layer that the router sees; 0 is the embedding

A file of prompts holds one a line. Relative paths are relative to the file.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelglue.errors import ConfigError
from modelglue.mixture.features import Feature
from modelglue.mixture.router_prompts import INITIALISATIONS
from modelglue.registry import nearest
from modelglue.yamlfile import read_yaml

KEYS = ("experts", "encoder", "initialisation", "layer")
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

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `mix`."""
        return {
            "experts": self.experts,
            "prompts": self.prompts,
            "negatives": self.negatives,
            "encoder": self.encoder,
            "initialisation": self.initialisation,
            "feature": Feature(layer=self.layer),
        }


def load_mixture(path: Path) -> MixtureConfig:
    """Read a mixture's configuration.

    Raises:
        ConfigError: with everything that is wrong.
    """
    value = read_yaml(path)
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
    found = [
        _expert(entry, f"experts[{index}]", root, problems)
        for index, entry in enumerate(value["experts"])
    ]
    experts = [expert for expert in found if expert is not None]
    names = [expert["name"] for expert in experts]
    problems += [
        f"experts: {times} are called {name!r}; tell them apart with name"
        for name, times in Counter(names).items()
        if times > 1
    ]
    encoder, layer = value.get("encoder"), value.get("layer", 0)
    initialisation = value.get("initialisation", "discriminant")
    if encoder is not None and encoder not in names:
        problems.append(f"encoder: {encoder!r} is no expert{nearest(str(encoder), names)}")
    if initialisation not in INITIALISATIONS:
        close = nearest(str(initialisation), INITIALISATIONS)
        problems.append(f"initialisation: is none of {', '.join(INITIALISATIONS)}{close}")
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        problems.append(f"layer: must be a whole number of at least 0, not {layer!r}")
    return MixtureConfig(
        {expert["name"]: expert["model"] for expert in experts},
        {expert["name"]: expert["prompts"] for expert in experts},
        {expert["name"]: expert["negatives"] for expert in experts if expert["negatives"]},
        encoder,
        initialisation,
        layer,
    )


def _expert(entry: object, where: str, root: Path, problems: list[str]) -> dict[str, Any] | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        problems.append(f"{where}: must be a mapping with model and prompts")
        return None
    problems += [
        f"{where}.{key}: unknown key{nearest(str(key), EXPERT_KEYS)}"
        for key in entry
        if key not in EXPERT_KEYS
    ]
    model = entry["model"]
    local = root / model
    return {
        # A folder beside the file; anything else is left to the checkpoint's own rules.
        "model": str(local) if local.exists() else model,
        "name": str(entry.get("name") or model.rstrip("/").split("/")[-1]),
        "prompts": _texts(entry.get("prompts"), f"{where}.prompts", root, problems),
        "negatives": _texts(entry.get("negatives", []), f"{where}.negatives", root, problems),
    }


def _texts(value: object, where: str, root: Path, problems: list[str]) -> list[str]:
    if isinstance(value, str):
        try:
            lines = (root / value).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{where}: {value} cannot be read: {error}")
            return []
        return [line for line in lines if line.strip()]
    if isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value):
        return list(value)
    problems.append(f"{where}: must be a list of texts, or a file with one a line")
    return []
