"""mix, route and train-router on the command line."""

import json
import sys

import pytest
import yaml
from mixture_samples import PROMPTS, QUESTIONS, RIGHT

import tiny
from modelglue.cli import main


@pytest.fixture
def run(monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["modelglue", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A configuration for three fine-tunes of one model."""
    root = tmp_path_factory.mktemp("asked")
    base = tiny.save_model(root / "base", seed=0)
    entries = []
    for seed, (name, prompts) in enumerate(PROMPTS.items()):
        tiny.save_variant(base, root / name, seed=seed, scale=0.02)
        entries.append({"model": name, "prompts": prompts})
    (root / "mixture.yaml").write_text(yaml.safe_dump({"experts": entries}))
    lines = [
        json.dumps({"text": text, "scores": {other: float(other == name) for other in PROMPTS}})
        for name, texts in PROMPTS.items()
        for text in texts
    ]
    (root / "scores.jsonl").write_text("\n".join(lines))
    (root / "texts.txt").write_text("\n".join(text for own in PROMPTS.values() for text in own))
    return root


def test_a_bundle_is_made_routed_and_trained(run, asked, tmp_path, capsys):
    assert run("mix", asked / "mixture.yaml", tmp_path / "bundle", "--kind", "M-M-S") == 0
    assert "M-M-S over numbers, words, signs" in capsys.readouterr().out
    assert run("route", tmp_path / "bundle", *QUESTIONS[:2]) == 0
    told = capsys.readouterr().out
    assert f"{QUESTIONS[0]}  →  numbers" in told
    assert "probability" in told
    assert any(text[:70] in told for text in PROMPTS["words"])
    arguments = ("--scores", asked / "scores.jsonl", "--json")
    assert run("train-router", tmp_path / "bundle", tmp_path / "out", *arguments) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["after"]["mean"] <= trained["before"]["mean"]
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS))
    assert run("route", tmp_path / "out", "--file", tmp_path / "questions.txt", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["expert"] for one in found] == [list(PROMPTS)[i] for i in RIGHT]


def test_form_reason_and_condition_are_told_where_a_mixture_is_made(run, asked, tmp_path, capsys):
    assert run("mix", asked / "mixture.yaml", tmp_path / "stock", "--kind", "F-L-T") == 0
    told = capsys.readouterr()
    assert "the stock class mixtral" in told.out
    assert "not stock" not in told.out
    assert "condition  2.0" in told.out
    assert told.err == ""
    content = yaml.safe_load((asked / "mixture.yaml").read_text())
    for entry in content["experts"]:
        same = entry["model"] in ("numbers", "words")
        entry |= {"model": str(asked / entry["model"])}
        entry |= {"prompts": PROMPTS["words"]} if same else {}
    (tmp_path / "same.yaml").write_text(yaml.safe_dump(content))
    assert run("mix", tmp_path / "same.yaml", tmp_path / "own", "--kind", "F-L-S") == 0
    told = capsys.readouterr()
    assert "a checkpoint with its own modelling file" in told.out
    assert "F-L-S is another kind" in told.out
    assert "∞ (1 is best)" in told.out
    assert "warning: 4 of 4 routers cannot tell numbers, words apart (condition ∞)" in told.err


def test_a_checkpoint_is_made_routed_and_trained(run, asked, tmp_path, capsys):
    made = (asked / "mixture.yaml", tmp_path / "model", "--kind", "B-L-S", "--json")
    assert run("mix", *made) == 0
    assert json.loads(capsys.readouterr().out)["mixture"]["level"] == "block"
    assert run("route", tmp_path / "model", QUESTIONS[0]) == 0
    told = capsys.readouterr().out
    assert "layer" in told
    assert "100.0 %" in told
    options = ("--text", asked / "texts.txt", "--steps", 3, "--rows", 4, "--length", 32)
    assert run("train-router", tmp_path / "model", tmp_path / "out", *options) == 0
    told = capsys.readouterr().out
    assert "nats a token" in told
    assert "gain" in told
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["route", "bundle"], "nothing to route"),
        (["route", "asked/base", "x"], "is no mixture"),
        (["train-router", "bundle", "out"], "give texts with --text"),
        (
            ["train-router", "asked/base", "out", "--text", "asked/texts.txt", "--router", "mlp"],
            "--router: for routers of a bundle",
        ),
        (
            ["train-router", "bundle", "out", "--text", "asked/texts.txt", "--rate", "1"],
            "--rate: for routers of a checkpoint",
        ),
        (["mix", "asked/mixture.yaml", "out", "--kind", "B-L-T"], "B-L-T cannot exist"),
    ],
)
def test_what_cannot_be_done_is_refused(
    run, asked, bundle_path, tmp_path, monkeypatch, capsys, words, message
):
    (tmp_path / "asked").symlink_to(asked)
    (tmp_path / "bundle").symlink_to(bundle_path)
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
