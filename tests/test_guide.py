"""What the user guide shows does run."""

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

import tiny
from modelglue.checkpoint.reader import Checkpoint
from modelglue.cli.app import app

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

GUIDE = Path(__file__).parents[1] / "docs/guide.md"
SECTION = GUIDE.read_text().split("\n## Merging\n")[1].split("\n## ")[0]
CONFIGS = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", SECTION, re.DOTALL))
COMMANDS = re.findall(r"^    modelglue (.*?)(?: +#.*)?$", SECTION, re.MULTILINE)
(PROGRAM,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models, adapters and texts that the guide names."""
    root = tmp_path_factory.mktemp("guide")
    sizes: dict[str, Any] = {"num_hidden_layers": 32, "hidden_size": 16, "intermediate_size": 24}
    base = tiny.save_model(root / "models/base", **sizes)
    for seed, name in enumerate(("chat", "code", "math", "tools"), start=1):
        tiny.save_variant(base, root / "models" / name, seed=seed)
    tools = root / "models/tools"
    tokenizer = AutoTokenizer.from_pretrained(tools)
    model = AutoModelForCausalLM.from_pretrained(tools)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(tools)
    tokenizer.save_pretrained(tools)
    t5 = AutoConfig.for_model(
        "t5", d_model=16, d_kv=8, d_ff=24, num_layers=8, num_heads=2, vocab_size=64
    )
    AutoModelForSeq2SeqLM.from_config(t5).save_pretrained(root / "models/t5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
        adapted.save_pretrained(root / "adapters/law")
    (root / "stats").mkdir()
    for name in ("math", "code"):
        (root / f"{name}.txt").write_text("one and one make two\n")
    for name, text in CONFIGS.items():
        (root / name).write_text(text)
    return root


def run(command: str) -> None:
    app(shlex.split(command), standalone_mode=False)


def test_the_guide_has_its_examples() -> None:
    assert [*CONFIGS] == [
        "ties.yml",
        "slerp.yml",
        "stack.yml",
        "encoder.yml",
        "union.yml",
        "lora.yml",
        "fisher.yml",
    ]
    assert len(COMMANDS) == 4


def test_every_command_and_configuration_of_the_guide_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for command in COMMANDS:
        run(command)
    assert (place / "merged/config.json").exists()
    for name in CONFIGS:
        run(f"merge {name} out/{name} --dry-run")
        run(f"merge {name} out/{name}")
        kind = AutoModelForSeq2SeqLM if name == "encoder.yml" else AutoModelForCausalLM
        _, told = kind.from_pretrained(place / "out" / name, output_loading_info=True)
        assert not told["missing_keys"]
    with Checkpoint.open(place / "out/stack.yml") as stacked:
        assert stacked.config["num_hidden_layers"] == 48
    with Checkpoint.open(place / "out/encoder.yml") as stacked:
        assert (stacked.config["num_layers"], stacked.config["num_decoder_layers"]) == (12, 8)
    assert "<tool>" in AutoTokenizer.from_pretrained(place / "out/union.yml").get_vocab()


def test_the_program_of_the_guide_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found: dict[str, Any] = {}
    exec(PROGRAM, found)
    assert (place / "merged-1/config.json").exists()
    assert (place / "merged-2/config.json").exists()
    assert found["merged"].shape == (64, 64)
    assert found["both"]["w"].shape == (8, 8)
