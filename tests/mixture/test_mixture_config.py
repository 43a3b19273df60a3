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


def test_a_line_of_prompts_ends_at_a_line_feed_alone(tmp_path):
    texts = ["one\u2028still one", "two\x0cstill two", "three"]
    (tmp_path / "texts.txt").write_bytes("\r\n".join(texts).encode())
    entries = [{"model": name, "prompts": "texts.txt"} for name in "ab"]
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"experts": entries}))
    assert load_mixture(tmp_path / "mixture.yaml").prompts == {"a": texts, "b": texts}


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


def asked(tmp_path, **more):
    content = {"experts": [{"model": "a", "prompts": ["x"]}, {"model": "b", "prompts": ["y"]}]}
    path = tmp_path / "mixture.yaml"
    path.write_text(yaml.safe_dump({**content, **more}))
    return path


def test_a_kind_is_a_short_name_or_a_mapping_and_the_command_lines_comes_first(tmp_path):
    config = load_mixture(asked(tmp_path, kind="B-M-S", dense="b"))
    assert (config.kind.short, config.is_bundle, config.dense) == ("B-M-S", False, "b")
    assert config.arguments()["dense"] == "b"
    given = {"level": "model", "top_k": 2}
    config = load_mixture(asked(tmp_path, kind=given, initialisation="random", seed=3))
    assert (config.kind.top_k, config.is_bundle, config.arguments()["seed"]) == (2, True, 3)
    assert load_mixture(asked(tmp_path, kind="B-L-S"), kind="M-M-S").kind.short == "M-M-S"


def test_scored_items_stand_for_prompts(tmp_path):
    lines = ['{"text": "1 + 1", "scores": {"b": 0, "a": 1}}', '{"text": "hi", "scores": ']
    (tmp_path / "items.jsonl").write_text(lines[0] + "\n")
    experts = [{"model": "a"}, {"model": "b"}]
    config = load_mixture(asked(tmp_path, experts=experts, scores="items.jsonl"))
    assert (config.initialisation, config.prompts) == ("knn", {})
    assert config.scores.scores.tolist() == [[1.0, 0.0]]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"scores: .*items\.jsonl:2: is not JSON"):
        load_mixture(asked(tmp_path, experts=experts, scores="items.jsonl"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kind": "B-L-T"}, "kind: B-L-T cannot exist"),
        ({"kind": {"level": "ffn", "top_k": 3}}, "kind: top_k: 3 of 2 experts"),
        ({"kind": "F-L-T", "encoder": "a", "layer": 1}, "encoder: is for mixtures of whole models"),
        ({"dense": "a"}, "dense: is for mixtures in one checkpoint"),
        ({"initialisation": "knn"}, "scores: are for initialisation: knn, which needs them"),
        ({"seed": -1}, "seed: must be a whole number"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        load_mixture(asked(tmp_path, **more))
