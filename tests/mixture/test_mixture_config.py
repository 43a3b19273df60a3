"""A mixture asked for in YAML."""

import pytest
import yaml
from mixture_samples import PROMPTS, QUESTIONS, RIGHT

from modelglue.errors import ConfigError
from modelglue.mixture.bundle import Bundle
from modelglue.mixture.config import load_mixture
from modelglue.mixture.mix import mix


def test_a_file_is_enough_to_make_a_mixture(tmp_path, experts):
    (tmp_path / "words.txt").write_text("\n".join(PROMPTS["words"]) + "\n\n")
    entries = [
        {"model": str(path), "name": name, "prompts": PROMPTS[name]}
        for name, path in experts.items()
    ]
    entries[1]["prompts"] = "words.txt"
    asked = {"experts": entries, "encoder": "words", "layer": 1}
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(asked))
    summary = mix(out=tmp_path / "out", **load_mixture(tmp_path / "mixture.yaml").arguments())
    assert (summary.encoder, summary.feature.layer) == ("words", 1)
    routes = Bundle.load(tmp_path / "out").route(QUESTIONS)
    assert [route.expert for route in routes] == RIGHT


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    asked = {
        "experts": [
            {"model": "a", "prompts": ["x"], "promts": 1},
            {"model": "b/a", "prompts": "missing.txt"},
            {"prompts": ["x"]},
        ],
        "encoder": "c",
        "initialisation": "discriminent",
        "layer": -1,
    }
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(asked))
    with pytest.raises(ConfigError) as caught:
        load_mixture(tmp_path / "mixture.yaml")
    text = str(caught.value)
    for part in (
        'experts[0].promts: unknown key; did you mean "prompts"',
        "experts[1].prompts: missing.txt cannot be read",
        "experts[2]: must be a mapping",
        "2 are called 'a'",
        "encoder: 'c' is no expert",
        'did you mean "discriminant"',
        "layer: must be a whole number",
    ):
        assert part in text
